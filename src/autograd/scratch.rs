//! Memory for values that are computed whenever they are needed: the matrices of a base in few bits.
//!
//! A large matrix that is made anew for each layer is memory that the system takes back and clears again each time, and
//! a graph would keep it until the backward pass. Here one buffer per size is used again, as long as a [`Pass`] lasts.
//! Values that a block's graph reads are computed once more, into the same memory, before the backward pass comes to
//! that block ([`Recorded`]).

use std::cell::RefCell;
use std::rc::Rc;

use tch::{no_grad, Device, Kind, Tensor};

use crate::device::trace;
use crate::error::Result;

/// Writes the values to a tensor of their shape and kind.
pub(crate) type Fill = Rc<dyn Fn(&Tensor) -> Result<()>>;

thread_local! {
    static ROOM: RefCell<Room> = const { RefCell::new(Room { passes: 0, free: Vec::new(), recorded: None }) };
}

/// The memory of this thread.
struct Room {
    /// The passes that have begun and not ended.
    passes: usize,
    /// Buffers that nobody reads.
    free: Vec<Tensor>,
    /// The values that a graph reads, while the graph of a block is recorded.
    recorded: Option<Vec<Values>>,
}

/// Values that can be computed at any time, and the memory that they are written to.
struct Values {
    buffer: Tensor,
    shape: Vec<i64>,
    fill: Fill,
}

impl Values {
    fn compute(&self) -> Result<()> {
        no_grad(|| (self.fill)(&self.buffer.f_view(&self.shape[..])?))
    }
}

/// A time in which buffers are used again. They are freed when the last pass of the thread ends.
pub(crate) struct Pass(());

impl Pass {
    pub(crate) fn begin() -> Self {
        ROOM.with_borrow_mut(|room| room.passes += 1);
        Pass(())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let freed = ROOM.with_borrow_mut(|room| {
            room.passes -= 1;
            if room.passes == 0 {
                std::mem::take(&mut room.free)
            } else {
                Vec::new()
            }
        });
        drop(freed);
    }
}

/// Calls `f` with values of this shape, which may be overwritten as soon as it has returned, unless its result has a
/// graph. Then they stay as they are as long as the graph does; or, in a block that is recorded, until the next block.
// Only models keep matrices so.
#[cfg_attr(not(feature = "models"), allow(dead_code))]
pub(crate) fn with_values(
    shape: &[i64],
    (kind, device): (Kind, Device),
    fill: Fill,
    f: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if trace::is_tracing() {
        // Memory that is used again under another name is none of the trace's.
        let values = Tensor::f_empty(shape, (kind, device))?;
        no_grad(|| fill(&values))?;
        return f(&values);
    }
    let buffer = buffer(shape.iter().product(), kind, device)?;
    let values = Values { buffer, shape: shape.to_vec(), fill };
    values.compute()?;
    // A version counter of its own: autograd must not take the next values for a change of these.
    let mut given = Tensor::f_empty([0], (kind, device))?;
    no_grad(|| given.f_set_data(&values.buffer.f_view(shape)?))?;
    let result = f(&given)?;
    ROOM.with_borrow_mut(|room| match &mut room.recorded {
        _ if !result.requires_grad() => room.give_back(values.buffer),
        Some(recorded) => recorded.push(values),
        // The graph has them.
        None => (),
    });
    Ok(result)
}

impl Room {
    fn give_back(&mut self, buffer: Tensor) {
        let place = buffer.data_ptr();
        if self.passes > 0 && self.free.iter().all(|free| free.data_ptr() != place) {
            self.free.push(buffer);
        }
    }
}

/// One that nobody reads, of so many numbers.
fn buffer(numbers: i64, kind: Kind, device: Device) -> Result<Tensor> {
    let fits = |free: &Tensor| {
        free.numel() as i64 == numbers && free.kind() == kind && free.device() == device
    };
    let free = ROOM.with_borrow_mut(|room| {
        room.free.iter().position(fits).map(|place| room.free.swap_remove(place))
    });
    match free {
        Some(buffer) => Ok(buffer),
        None => Ok(Tensor::f_empty([numbers], (kind, device))?),
    }
}

/// The values that the graph of a block reads. They may be overwritten once the block has been recorded.
#[derive(Default)]
pub(super) struct Recorded(Vec<Values>);

impl Recorded {
    /// Calls `f`, which computes a block.
    pub(super) fn of<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Self)> {
        /// Puts back what was recorded around it, also where `f` panics.
        struct Around(Option<Vec<Values>>);
        impl Around {
            fn exchange(&mut self) {
                ROOM.with_borrow_mut(|room| std::mem::swap(&mut room.recorded, &mut self.0));
            }
        }
        impl Drop for Around {
            fn drop(&mut self) {
                self.exchange();
            }
        }
        let mut around = Around(Some(Vec::new()));
        around.exchange();
        let result = f();
        let recorded = ROOM.with_borrow_mut(|room| room.recorded.replace(Vec::new()));
        drop(around);
        Ok((result?, Recorded(recorded.unwrap_or_default())))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets the memory be used for other values, until [`compute`](Self::compute).
    pub(super) fn release(&self) {
        let buffers = self.0.iter().map(|values| values.buffer.shallow_clone()).collect::<Vec<_>>();
        ROOM.with_borrow_mut(|room| buffers.into_iter().for_each(|buffer| room.give_back(buffer)));
    }

    /// Computes the values again, for a backward pass that is all of the graph's use until they are released.
    pub(super) fn compute(&self) -> Result<()> {
        self.0.iter().try_for_each(Values::compute)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashSet;

    use super::*;
    use crate::autograd::recompute::{Blocks, Recompute, Tape};

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
    const SIZE: i64 = 6;

    /// Blocks with a matrix of their own each, which is computed when it is needed.
    struct Net {
        matrices: Vec<Tensor>,
        scales: Vec<Tensor>,
        x: Tensor,
        computed: Rc<Cell<usize>>,
        places: RefCell<HashSet<usize>>,
    }

    impl Net {
        fn new() -> Self {
            tch::set_num_threads(1);
            let random = |_| Tensor::randn([SIZE, SIZE], CPU);
            let scale = |_| (Tensor::ones([SIZE], CPU) * 0.7).set_requires_grad(true);
            Net {
                matrices: (0..4).map(random).collect(),
                scales: (0..4).map(scale).collect(),
                x: Tensor::randn([3, SIZE], CPU),
                computed: Rc::default(),
                places: RefCell::default(),
            }
        }

        fn block(&self, at: usize, x: &Tensor) -> Result<Tensor> {
            let scaled = x.f_mul(&self.scales[at])?;
            let (matrix, computed) = (self.matrices[at].shallow_clone(), self.computed.clone());
            let fill = move |out: &Tensor| {
                computed.set(computed.get() + 1);
                Ok(out.shallow_clone().f_copy_(&matrix)?)
            };
            let product = with_values(&[SIZE, SIZE], CPU, Rc::new(fill), |values| {
                self.places.borrow_mut().insert(values.data_ptr() as usize);
                Ok(scaled.f_linear(values, None::<&Tensor>)?)
            });
            Ok(x.f_add(&product?.f_tanh()?)?)
        }

        fn loss<'a>(&'a self, tape: &mut Tape<'a>) -> Result<Tensor> {
            let mut hidden = self.x.shallow_clone();
            for at in 0..self.matrices.len() {
                hidden = tape.run(&hidden, move |hidden| self.block(at, hidden))?;
            }
            Ok(hidden.f_square()?.f_mean(Kind::Float)?)
        }

        /// The number of places that values had, and how often they were computed.
        fn counted(&self) -> (usize, usize) {
            (self.places.take().len(), self.computed.take())
        }
    }

    #[test]
    fn blocks_share_one_buffer_and_each_graph_reads_its_own_values() {
        let net = Net::new();
        let loss = net.loss(&mut Tape::off()).unwrap();
        // A plain graph keeps all of them.
        assert_eq!(net.counted(), (4, 4));
        let expected = Tensor::run_backward(&[&loss], &net.scales, false, false);
        for blocks in [Blocks::First(0), Blocks::First(2), Blocks::EveryNth(2), Blocks::All] {
            let recompute = Recompute::new(blocks);
            let (value, found) = recompute.gradients(&net.scales, |tape| net.loss(tape)).unwrap();
            assert_eq!(value, loss.detach());
            assert_eq!(found, expected, "{blocks:?}");
            assert_eq!(net.counted(), (1, 8), "{blocks:?}");
        }
        // Without a graph, values are gone as soon as they were used.
        no_grad(|| {
            let _pass = Pass::begin();
            let _ = net.loss(&mut Tape::off()).unwrap();
            assert_eq!(net.counted(), (1, 4));
        });
        ROOM.with_borrow(|room| assert!(room.free.is_empty() && room.recorded.is_none()));
    }

    #[test]
    fn a_block_that_fails_leaves_nothing_behind() {
        let net = Net::new();
        let recompute = Recompute::new(Blocks::First(0));
        let failed = recompute.gradients(&net.scales, |tape| {
            let hidden = tape.run(&net.x, |x| net.block(0, x))?;
            tape.run(&hidden, |x| {
                let _ = net.block(1, x)?;
                Ok(x.f_linear(&net.x, None::<&Tensor>)?.f_matmul(&net.x.f_view([-1])?)?)
            })
        });
        assert!(failed.is_err());
        ROOM.with_borrow(|room| {
            assert!(room.free.is_empty() && room.recorded.is_none() && room.passes == 0)
        });
    }

    #[test]
    fn a_block_that_panics_leaves_nothing_behind_and_gradients_on() {
        let net = Net::new();
        let expected = Recompute::default().gradients(&net.scales, |tape| net.loss(tape)).unwrap();
        let x = net.x.shallow_clone().set_requires_grad(true);
        for blocks in [Blocks::First(0), Blocks::All] {
            let run = || {
                Recompute::new(blocks).gradients(&net.scales, |tape| {
                    tape.run(&x, |x| {
                        let _ = net.block(0, x)?;
                        panic!("in the middle of a block")
                    })
                })
            };
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
            ROOM.with_borrow(|room| {
                assert!(room.free.is_empty() && room.recorded.is_none() && room.passes == 0)
            });
            let again = Recompute::default().gradients(&net.scales, |tape| net.loss(tape)).unwrap();
            assert_eq!(again, expected);
        }
    }
}
