//! A training step as a CUDA graph.

use tch::{no_grad, Device, Kind, Tensor};

use super::clipping::check_max;
use super::filled::Run;
use super::optimizer::Optimizer;
use super::replay::Key;
use crate::adapter::flat::copy_of;
use crate::device::graph::{Graph, SideStream};
use crate::device::transfer::{send_into, Kept};
use crate::error::{refuse, Result};

/// Steps of one shape before one is captured: the first makes what is kept, such as moments, and the next shows that
/// nothing else is.
const WARM_UP: u32 = 2;

/// A training step whose work on the GPU is captured as a CUDA graph and then replayed: forward, backward, clipping and
/// the update are one launch instead of a thousand. It pays where launches take longer than the work, such as one row of
/// 128 tokens, and changes no bit.
///
/// Give [`run`](Self::run) the inputs, and a function from inputs to a loss. For each set of shapes the first two steps
/// run one by one; the third is captured, and from then on it is replayed. Every call is one step of training. The
/// learning rate may change from step to step; whatever else is changed in between (other settings of the optimiser,
/// another adapter, a model that has moved) leads to two steps without a graph and a new one.
///
/// All that changes from step to step must be among the inputs, as tensors: for other values, shapes apart, the function
/// is not called again. A function that waits for the device, copies values to it that differ between steps, or drops
/// layers of a model at random, cannot be captured. Then steps run one by one, as on the CPU, in a group of processes and
/// with an optimiser of [`optimizer_for`](crate::LnTuningModel::optimizer_for), and
/// [`without_graph`](Self::without_graph) gives the reason. A step at a learning rate of 0 runs by itself too. Labels
/// belong on the device, and dropout draws what it would draw without a graph.
///
/// A graph keeps its own memory, about that of one step. Graphs of several shapes share it.
///
/// ```
/// # use tch::{nn, nn::Module, Device, Kind, Tensor};
/// use ln_tuning::{AdamW, GraphedStep, LnTuningConfig, LnTuningModel};
/// # let vs = nn::VarStore::new(Device::Cpu);
/// # let net = nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
/// # let batch = || [Tensor::randn([8, 4], (Kind::Float, Device::Cpu)), Tensor::zeros([8, 4], (Kind::Float, Device::Cpu))];
/// let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
/// let mut opt = tuned.optimizer(AdamW::default(), 1e-2)?;
/// let mut step = GraphedStep::default().clip_norm(1.0)?;
/// for _ in 0..10 {
///     let [x, y] = batch();
///     let stepped = step.run(&mut opt, &[&x, &y], |inputs| {
///         Ok(net.forward(&inputs[0]).f_mse_loss(&inputs[1], tch::Reduction::Mean)?)
///     })?;
///     assert!(stepped.loss.double_value(&[]) >= 0.);
/// }
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "CUDAGraph")]
#[doc(alias = "make_graphed_callables")]
#[derive(Debug)]
pub struct GraphedStep {
    clip: Option<f64>,
    most: usize,
    shapes: Vec<Shape>,
    stream: Option<SideStream>,
    without_graph: Option<String>,
    /// A capture that has failed is not tried again.
    failed: Option<String>,
}

/// A step that was made.
#[derive(Debug)]
#[non_exhaustive]
pub struct Stepped {
    /// The loss, a scalar on the device, outside any graph of autograd.
    pub loss: Tensor,
    /// The norm of the gradient before clipping, a scalar on the device.
    pub grad_norm: Tensor,
    /// True if the step was a replay; false if it ran one by one.
    pub replayed: bool,
}

/// Inputs of one set of shapes and kinds.
#[derive(Debug)]
struct Shape {
    /// Those that the step reads.
    inputs: Vec<Tensor>,
    /// Steps one by one since something changed.
    steps: u32,
    /// The key behind the last of them.
    key: Option<Key>,
    captured: Option<Captured>,
    /// Behind the graph, which reads it.
    kept: Kept,
}

#[derive(Debug)]
struct Captured {
    graph: Graph,
    key: Key,
    runs: Vec<Run>,
    present: Vec<bool>,
    loss: Tensor,
    grad_norm: Tensor,
}

impl Default for GraphedStep {
    fn default() -> Self {
        GraphedStep {
            clip: None,
            most: 8,
            shapes: Vec::new(),
            stream: None,
            without_graph: None,
            failed: None,
        }
    }
}

impl GraphedStep {
    /// Scales the gradient to a norm of at most `max`, as [`Optimizer::clip_grad_norm`].
    ///
    /// # Errors
    /// `InvalidArgument` if `max` is not a positive number.
    pub fn clip_norm(mut self, max: f64) -> Result<Self> {
        check_max(max)?;
        self.clip = Some(max);
        Ok(self)
    }

    /// The most sets of shapes that have a graph, the first ones; others run one by one. The default is 8. At 0, all do.
    #[must_use]
    pub fn most_graphs(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// The reason why the last step had no graph and the next ones will have none. `None` while steps are replayed, and
    /// during the first two of a set of shapes.
    pub fn without_graph(&self) -> Option<&str> {
        self.without_graph.as_deref()
    }

    /// Makes one step: zeroes the gradients, computes the loss of the inputs by `forward`, goes backward, clips and
    /// updates. Inputs may be anywhere; `forward` gets them on the model's device. Nothing waits for the device, but once
    /// for each graph.
    ///
    /// # Errors
    /// Those of `forward` and of [`Optimizer::backward_step_clip_norm`]; `InvalidState` for an optimizer that
    /// accumulates gradients; `InvalidArgument` without an input.
    pub fn run(
        &mut self,
        optimizer: &mut Optimizer,
        inputs: &[&Tensor],
        forward: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Stepped> {
        optimizer.begin_whole_step()?;
        let device = optimizer.device()?;
        let at = self.shape_of(inputs, device)?;
        self.without_graph = self.reason(optimizer, device, at);
        let clip = self.clip;
        let step = |optimizer: &mut Optimizer, inputs: &[Tensor]| {
            let loss = forward(inputs)?;
            let grad_norm = optimizer.whole_step(&loss, clip)?;
            Ok((loss.f_detach()?, grad_norm))
        };
        let Some(at) = at else {
            let there = inputs.iter().map(|input| filled(input, device));
            let (loss, grad_norm) = step(optimizer, &there.collect::<Result<Vec<_>>>()?)?;
            return Ok(Stepped { loss, grad_norm, replayed: false });
        };
        for (to, from) in self.shapes[at].inputs.iter().zip(inputs) {
            no_grad(|| send_into(to, from))?;
        }
        if self.without_graph.is_none() {
            let key = optimizer.key(clip)?;
            let other = |captured: &Captured| {
                let next = || optimizer.next_update(&captured.runs);
                captured.key != key || (!optimizer.is_exception() && next().is_none())
            };
            if self.shapes[at].captured.as_ref().is_some_and(other) {
                (self.shapes[at].captured, self.shapes[at].steps) = (None, 0);
            }
            self.capture(at, optimizer, key, &step)?;
            if let Some(stepped) = self.shapes[at].replay(optimizer)? {
                return Ok(stepped);
            }
        }
        let shape = &mut self.shapes[at];
        let Shape { inputs, kept, .. } = shape;
        let (loss, grad_norm) = match &self.stream {
            Some(stream) if self.without_graph.is_none() => {
                stream.run(|| kept.run(false, || step(optimizer, inputs)))?
            }
            _ => step(optimizer, inputs)?,
        };
        shape.steps = shape.steps.saturating_add(1);
        shape.key = Some(optimizer.key(clip)?);
        Ok(Stepped { loss, grad_norm, replayed: false })
    }

    /// The place of inputs of these shapes; `None` beyond the most that have a graph.
    fn shape_of(&mut self, inputs: &[&Tensor], device: Device) -> Result<Option<usize>> {
        if inputs.is_empty() || !inputs.iter().all(|input| input.defined()) {
            refuse!(
                InvalidArgument,
                "a graphed step has no input, or one that is undefined: give it the tensors that its loss depends on"
            );
        }
        let form =
            |tensor: &Tensor| -> Result<(Kind, Vec<i64>)> { Ok((tensor.f_kind()?, tensor.size())) };
        let wanted = inputs.iter().map(|input| form(input)).collect::<Result<Vec<_>>>()?;
        for (at, shape) in self.shapes.iter_mut().enumerate() {
            let own = shape.inputs.iter().map(form).collect::<Result<Vec<_>>>()?;
            if own == wanted {
                if shape.inputs.iter().any(|input| input.device() != device) {
                    *shape = Shape::new(&wanted, device)?;
                }
                return Ok(Some(at));
            }
        }
        if self.shapes.len() >= self.most {
            return Ok(None);
        }
        self.shapes.push(Shape::new(&wanted, device)?);
        Ok(Some(self.shapes.len() - 1))
    }

    /// The reason why this step cannot have a graph.
    fn reason(
        &mut self,
        optimizer: &Optimizer,
        device: Device,
        at: Option<usize>,
    ) -> Option<String> {
        if !device.is_cuda() {
            return Some(format!("the model is on {device:?}, and CUDA graphs need a CUDA device"));
        }
        if let Some(reason) = optimizer.cannot_be_captured() {
            return Some(reason.to_owned());
        }
        if at.is_none() {
            return Some(format!(
                "{} other shapes of inputs came before, which is the most that have graphs",
                self.most
            ));
        }
        if self.stream.is_none() && self.failed.is_none() {
            match SideStream::new(device) {
                Ok(stream) => self.stream = Some(stream),
                Err(error) => self.failed = Some(error.to_string()),
            }
        }
        self.failed.clone()
    }

    /// Captures a step, if it is time to.
    fn capture(
        &mut self,
        at: usize,
        optimizer: &mut Optimizer,
        key: Key,
        step: &impl Fn(&mut Optimizer, &[Tensor]) -> Result<(Tensor, Tensor)>,
    ) -> Result<()> {
        let shape = &self.shapes[at];
        let ready = shape.steps >= WARM_UP && shape.key.as_ref() == Some(&key);
        let next = optimizer.next_update(&optimizer.last_update());
        let (None, true, Some(next), Some(stream)) = (&shape.captured, ready, next, &self.stream)
        else {
            return Ok(());
        };
        optimizer.fill(&next)?;
        let Shape { inputs, mut kept, .. } =
            std::mem::replace(&mut self.shapes[at], Shape::new(&[], Device::Cpu)?);
        let beside = self.shapes.iter().find_map(|shape| shape.captured.as_ref());
        let captured = stream.capture(beside.map(|captured| &captured.graph), || {
            kept.run(true, || optimizer.capturing(|optimizer| step(optimizer, &inputs)))
        });
        let captured = captured.and_then(|(graph, (loss, grad_norm))| {
            let present = optimizer.presence()?;
            if optimizer.key(self.clip)? != key {
                refuse!(Unsupported, "the step moves weights, gradients or moments");
            }
            Ok(Captured { graph, key, runs: next, present, loss, grad_norm })
        });
        let captured = match captured {
            Ok(captured) => Some(captured),
            Err(error) => {
                let words = error.to_string();
                self.failed = Some(format!(
                    "the step cannot be captured (does it wait for the device, or copy to it?): {}",
                    words.lines().next().unwrap_or_default()
                ));
                None
            }
        };
        self.without_graph = self.failed.clone();
        self.shapes[at] = Shape { inputs, steps: WARM_UP, key: None, captured, kept };
        Ok(())
    }
}

impl Shape {
    fn new(forms: &[(Kind, Vec<i64>)], device: Device) -> Result<Self> {
        let empty = |(kind, size): &(Kind, Vec<i64>)| Tensor::f_empty(size, (*kind, device));
        let inputs = forms.iter().map(|form| Ok(empty(form)?)).collect::<Result<Vec<_>>>()?;
        Ok(Shape { inputs, steps: 0, key: None, captured: None, kept: Kept::default() })
    }

    /// Replays the captured step, if the next one is like it.
    fn replay(&self, optimizer: &mut Optimizer) -> Result<Option<Stepped>> {
        let Some(captured) = &self.captured else { return Ok(None) };
        let Some(next) = optimizer.next_update(&captured.runs) else { return Ok(None) };
        optimizer.fill(&next)?;
        captured.graph.replay()?;
        optimizer.replayed(&captured.present)?;
        // The next replay overwrites its own.
        let [loss, grad_norm] = [&captured.loss, &captured.grad_norm].map(copy_of);
        Ok(Some(Stepped { loss: loss?, grad_norm: grad_norm?, replayed: true }))
    }
}

/// An input in memory of its own on the device.
fn filled(input: &Tensor, device: Device) -> Result<Tensor> {
    let there = Tensor::f_empty(input.size(), (input.f_kind()?, device))?;
    no_grad(|| send_into(&there, input))?;
    Ok(there)
}
