/* Streams and events: everything is done as soon as it is asked for, and each wait for the device is counted. */
#include "counting.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdint.h>

static void *handle(void) {
    static atomic_uintptr_t next = 0x1000;
    return (void *)atomic_fetch_add(&next, 16);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = handle();
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = handle();
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *number) {
    *status = cudaStreamCaptureStatusNone;
    if (id != NULL) *id = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    count_wait("cudaStreamSynchronize");
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    count_wait("cudaEventSynchronize");
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    count_wait("cudaDeviceSynchronize");
    return cudaSuccess;
}
