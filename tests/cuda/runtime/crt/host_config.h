/* Like host_defines.h: in the compiler's wheel alone. It checks the version of the host's compiler. */
