// Fused functions with gradients of their own, behind a C ABI, compiled as one since most of the time goes into
// headers of libtorch. The loops are in loops.cpp.
//
// Each takes pointers to tensors and leaves new ones, or none where libtorch's own operators are to be used. It gives
// the message of an error, which the caller frees, or null.
#include "fused/attention.h"
#include "fused/cross_entropy.h"
#include "fused/cuda.h"
#include "fused/gated.h"
#include "fused/norm.h"
#include "fused/products.h"
#include "fused/rope.h"
