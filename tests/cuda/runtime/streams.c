/* Streams and events: everything is done as soon as it is asked for, and each wait for the device is counted. */
#include "counting.h"

#include <cuda_runtime_api.h>

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = new_handle();
    order_new_stream(*stream, !(flags & cudaStreamNonBlocking));
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaSuccess; }

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    if (!is_captured(stream)) order_wait(stream, event);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = new_handle();
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (!is_captured(stream)) order_record(event, stream);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) { return cudaSuccess; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (waits_in_capture(stream, 0)) return cudaErrorStreamCaptureUnsupported;
    count_wait("cudaStreamSynchronize");
    order_settle();
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    count_wait("cudaEventSynchronize");
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    if (waits_in_capture(NULL, 1)) return cudaErrorStreamCaptureUnsupported;
    count_wait("cudaDeviceSynchronize");
    order_settle();
    return cudaSuccess;
}
