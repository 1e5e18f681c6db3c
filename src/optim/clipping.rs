//! The size of the gradient, and its bounds.

use tch::Tensor;

use super::algorithm::check_range;
use super::optimizer::Optimizer;
use crate::adapter::gradients::Gradients;
use crate::error::Result;
use crate::kernels::number::WithNumber;

impl Optimizer {
    /// [`backward_step`](Self::backward_step) with every gradient element clamped to ±`max` before the update.
    ///
    /// # Errors
    /// Those of `backward_step`, and `InvalidArgument` if `max` is not a positive number.
    pub fn backward_step_clip(&mut self, loss: &Tensor, max: f64) -> Result<()> {
        check_max(max)?;
        self.accumulate(loss, |this, gradients| this.clip_value(gradients, max))
    }

    /// [`backward_step`](Self::backward_step) with the gradient scaled to a Euclidean norm of at most `max` before
    /// the update.
    ///
    /// # Errors
    /// Those of `backward_step`, and `InvalidArgument` if `max` is not a positive number.
    pub fn backward_step_clip_norm(&mut self, loss: &Tensor, max: f64) -> Result<()> {
        check_max(max)?;
        self.accumulate(loss, |_, gradients| clip_norm(gradients, max).map(drop))
    }

    /// Clamps every gradient element to ±`max`.
    ///
    /// # Errors
    /// `NoGradient` if there is none; `InvalidArgument` if `max` is not a positive number.
    pub fn clip_grad_value(&mut self, max: f64) -> Result<()> {
        check_max(max)?;
        self.with_gradients(|this, gradients| this.clip_value(gradients, max))
    }

    pub(super) fn clip_value(&mut self, gradients: &mut Gradients, max: f64) -> Result<()> {
        // Afterwards, infinity is gone.
        self.loss_scale.check(gradients.flat()?)?;
        gradients.change(|all| all.f_clamp_(-max, max))
    }

    /// Scales the gradient so that its Euclidean norm over all selected tensors is at most `max`, as
    /// `torch.nn.utils.clip_grad_norm_` does. Returns the norm before clipping as a scalar on the model's device, so
    /// that nothing waits for the device until its value is read.
    ///
    /// # Errors
    /// `NoGradient` if there is none; `InvalidArgument` if `max` is not a positive number.
    pub fn clip_grad_norm(&mut self, max: f64) -> Result<Tensor> {
        check_max(max)?;
        self.with_gradients(|_, gradients| clip_norm(gradients, max))
    }

    /// The Euclidean norm of the gradient over all selected tensors, as a scalar on the model's device.
    ///
    /// # Errors
    /// `NoGradient` if there is none.
    pub fn grad_norm(&mut self) -> Result<Tensor> {
        self.with_gradients(|_, gradients| Ok(gradients.flat()?.f_norm()?))
    }

    /// Runs `f` on the gradients, after following what user code has done to them.
    fn with_gradients<T>(
        &mut self,
        f: impl FnOnce(&mut Self, &mut Gradients) -> Result<T>,
    ) -> Result<T> {
        self.with_adapter(|this, attachment| {
            this.followed(attachment)?;
            this.reduce(attachment, None)?;
            f(this, &mut attachment.graded(&this.adapter)?.0.gradients)
        })
    }
}

/// Scales the gradients to a norm of at most `max`. Returns the norm before.
pub(super) fn clip_norm(gradients: &mut Gradients, max: f64) -> Result<Tensor> {
    let norm = gradients.flat()?.f_norm()?;
    // The coefficient stays on the device: multiplying by 1 is cheaper than waiting for its value.
    let coefficient = norm.f_add_number(1e-6)?.f_reciprocal()?.f_mul_number(max)?;
    let coefficient = coefficient.f_at_most(1.)?;
    gradients.change(|all| all.f_mul_(&coefficient))?;
    Ok(norm)
}

pub(super) fn check_max(max: f64) -> Result<()> {
    check_range("the clipping bound", max, f64::MIN_POSITIVE..f64::INFINITY, "finite and above 0")
}
