/* Graphs: what is asked of a stream while it is captured is counted apart, and done by nobody. */
#define _GNU_SOURCE
#include "counting.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* One stream at a time is captured here. */
static struct {
    const void *stream;
    pthread_t thread;
    unsigned long long id;
    size_t nodes;
    enum cudaStreamCaptureStatus status;
} captured;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

enum { SIZE = 1 << 10 };
static struct {
    const char *name;
    unsigned long calls;
} counters[SIZE];

int is_captured(const void *stream) {
    pthread_mutex_lock(&lock);
    int found = captured.status != cudaStreamCaptureStatusNone && stream == captured.stream;
    pthread_mutex_unlock(&lock);
    return found;
}

int count_captured(const void *stream, const char *name) {
    if (!is_captured(stream)) return 0;
    pthread_mutex_lock(&lock);
    size_t at = 0;
    while (at < SIZE && counters[at].name != NULL && counters[at].name != name) at++;
    if (at == SIZE) abort();
    counters[at].name = name;
    counters[at].calls++;
    captured.nodes++;
    pthread_mutex_unlock(&lock);
    return 1;
}

void count_on(const void *stream, const char *name) {
    if (!count_captured(stream, name)) count(name);
}

int waits_in_capture(const void *stream, int for_all) {
    pthread_mutex_lock(&lock);
    int own = captured.status != cudaStreamCaptureStatusNone && pthread_equal(captured.thread, pthread_self());
    int found = own && (for_all || stream == captured.stream);
    if (found) captured.status = cudaStreamCaptureStatusInvalidated;
    pthread_mutex_unlock(&lock);
    return found;
}

void reset_graphs(void) {
    pthread_mutex_lock(&lock);
    for (size_t at = 0; at < SIZE; at++) counters[at].calls = 0;
    pthread_mutex_unlock(&lock);
}

void report_graphs(FILE *file) {
    char *(*demangle)(const char *, char *, size_t *, int *) = dlsym(RTLD_DEFAULT, "__cxa_demangle");
    pthread_mutex_lock(&lock);
    for (size_t at = 0; at < SIZE; at++) {
        if (counters[at].calls == 0) continue;
        char *plain = demangle == NULL ? NULL : demangle(counters[at].name, NULL, NULL, NULL);
        fprintf(file, "captured\t%lu\t%s\n", counters[at].calls, plain == NULL ? counters[at].name : plain);
        free(plain);
    }
    pthread_mutex_unlock(&lock);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    static unsigned long long ids;
    if (stream == NULL) return cudaErrorStreamCaptureUnsupported;
    pthread_mutex_lock(&lock);
    int busy = captured.status != cudaStreamCaptureStatusNone;
    if (!busy) {
        captured.stream = stream;
        captured.thread = pthread_self();
        captured.id = ++ids;
        captured.nodes = 0;
        captured.status = cudaStreamCaptureStatusActive;
    }
    pthread_mutex_unlock(&lock);
    return busy ? cudaErrorIllegalState : cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = NULL;
    pthread_mutex_lock(&lock);
    cudaError_t error = cudaSuccess;
    if (captured.status == cudaStreamCaptureStatusNone || stream != captured.stream)
        error = cudaErrorIllegalState;
    else if (!pthread_equal(captured.thread, pthread_self()))
        error = cudaErrorStreamCaptureWrongThread;
    else {
        if (captured.status == cudaStreamCaptureStatusInvalidated) error = cudaErrorStreamCaptureInvalidated;
        captured.status = cudaStreamCaptureStatusNone;
    }
    /* A graph is the number of its nodes. */
    size_t *made = error == cudaSuccess ? malloc(sizeof *made) : NULL;
    if (made != NULL) *made = captured.nodes;
    pthread_mutex_unlock(&lock);
    *graph = (cudaGraph_t)made;
    return error;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = is_captured(stream) ? captured.status : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *number) {
    cudaStreamIsCapturing(stream, status);
    if (id != NULL) *id = *status == cudaStreamCaptureStatusActive ? captured.id : 0;
    if (number != NULL) *number = 0;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *number) {
    *number = *(size_t *)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
    size_t *nodes = malloc(sizeof *nodes);
    if (nodes == NULL) abort();
    *nodes = *(size_t *)graph;
    *made = (cudaGraphExec_t)nodes;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    count_on(stream, "cudaGraphLaunch");
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    free(graph);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    count("cudaGraphExecDestroy");
    free(graph);
    return cudaSuccess;
}
