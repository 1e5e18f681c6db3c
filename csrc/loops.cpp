// The inner loops of the fused functions. Compiled once per kind of processor: LN_TUNING_LOOPS is the name of the table.
#include "loops/attention.h"
#include "loops/cross_entropy.h"
#include "loops/gated.h"
#include "loops/norm.h"
#include "loops/rope.h"

namespace ln_tuning {

extern const Loops LN_TUNING_LOOPS;
constexpr Loops table = {any_norm, any_norm_backward, any_gated, any_gated_backward, any_rope,
                         any_softmax, any_softmax_backward, any_cross_entropy};
const Loops LN_TUNING_LOOPS = table;

}  // namespace ln_tuning
