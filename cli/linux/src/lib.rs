//! Nothing but a feature of the library, which other systems refuse: a feature of cargo cannot depend on the system, and
//! a dependency can.
