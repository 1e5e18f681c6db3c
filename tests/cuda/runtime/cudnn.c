/* cuDNN is not here: it is asked for its version, and every other call is counted and refused. */
#include <cudnn_version.h>
#include <stddef.h>

size_t cudnnGetVersion(void) { return CUDNN_VERSION; }

const char *cudnnGetErrorString(int status) { return "the counting runtime has no cuDNN"; }
