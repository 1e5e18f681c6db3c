/* Kernels: registered with their names when libtorch_cuda is loaded, launched by the address of their host function. */
#define _GNU_SOURCE
#include "counting.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { SIZE = 1 << 18 };
static struct {
    const void *function;
    const char *name;
    unsigned long launches;
} kernels[SIZE];
static size_t known;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t place(const void *function) {
    size_t at = ((uintptr_t)function * 11400714819323198485u) >> 46;
    while (kernels[at].function != NULL && kernels[at].function != function) at = (at + 1) % SIZE;
    return at;
}

static void add(const void *function, const char *name) {
    size_t at = place(function);
    if (kernels[at].function != NULL) return;
    if (++known == SIZE) {
        fputs("counting runtime: more kernels than places\n", stderr);
        abort();
    }
    kernels[at].function = function;
    kernels[at].name = name;
}

static const char *last = "";

static void launch(const void *kernel, const char *name, const void *stream) {
    pthread_mutex_lock(&lock);
    add(kernel, name);
    if (!count_captured(stream, kernels[place(kernel)].name)) kernels[place(kernel)].launches++;
    last = kernels[place(kernel)].name;
    pthread_mutex_unlock(&lock);
}

void launched(const void *kernel, const void *stream) { launch(kernel, "a kernel that was not registered", stream); }
void launched_by_name(const char *name, const void *stream) { launch(name, name, stream); }
const char *last_launched(void) { return last; }

void reset_kernels(void) {
    pthread_mutex_lock(&lock);
    for (size_t at = 0; at < SIZE; at++) kernels[at].launches = 0;
    pthread_mutex_unlock(&lock);
}

/* Names are those of the source, as libstdc++ of this process spells them. */
void report_kernels(FILE *file) {
    char *(*demangle)(const char *, char *, size_t *, int *) = dlsym(RTLD_DEFAULT, "__cxa_demangle");
    pthread_mutex_lock(&lock);
    for (size_t at = 0; at < SIZE; at++) {
        if (kernels[at].launches == 0) continue;
        char *plain = demangle == NULL ? NULL : demangle(kernels[at].name, NULL, NULL, NULL);
        fprintf(file, "kernel\t%lu\t%s\n", kernels[at].launches, plain == NULL ? kernels[at].name : plain);
        free(plain);
    }
    pthread_mutex_unlock(&lock);
}

/* Functions that nvcc's code calls before main, and around each launch. No header declares them. */

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle;
    return &handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) {}

void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external, size_t size,
                       int constant, int global) {}

void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int threads, uint3 *tid,
                            uint3 *bid, dim3 *block, dim3 *grid, int *warp) {
    pthread_mutex_lock(&lock);
    add(host, name);
    pthread_mutex_unlock(&lock);
}

static _Thread_local struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} configurations[16];
static _Thread_local unsigned depth;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    if (depth == 16) abort();
    configurations[depth].grid = grid;
    configurations[depth].block = block;
    configurations[depth].shared = shared;
    configurations[depth++].stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    if (depth == 0) abort();
    *grid = configurations[--depth].grid;
    *block = configurations[depth].block;
    *shared = configurations[depth].shared;
    *(void **)stream = configurations[depth].stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host) {
    *kernel = (cudaKernel_t)host;
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    launched(kernel, stream);
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *host, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
    launched(host, stream);
    return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *configuration, const void *host, void **arguments) {
    launched(host, configuration->stream);
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *host) {
    *attributes = (struct cudaFuncAttributes){
        .maxThreadsPerBlock = 1024,
        .numRegs = 32,
        .binaryVersion = 90,
        .ptxVersion = 90,
        .maxDynamicSharedSizeBytes = 227 << 10,
    };
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *host, int size,
                                                                   size_t shared, unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}

/* A variable of the device: nobody reads what is in it. */
cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    static char variables[1 << 16];
    *address = variables;
    return cudaSuccess;
}
