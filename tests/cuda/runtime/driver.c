/* The driver, libcuda.so.1: devices are there, contexts are nothing, and compiled kernels are counted by name. Those of
   the library that COUNTING_KERNELS names are computed. */
#define _GNU_SOURCE
#include "counting.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

CUresult cuInit(unsigned flags) {
    count("cuInit");
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    *version = CUDA_VERSION;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = "an error of the counting runtime";
    return CUDA_SUCCESS;
}

/* NVRTC asks for functions that no header names: an empty table, which begins with its size. */
CUresult cuGetExportTable(const void **table, const CUuuid *name) {
    static const size_t empty = sizeof empty;
    *table = &empty;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *devices) {
    *devices = device_count();
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    *value = 0;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) *value = (int)setting("COUNTING_SM", 90) / 10;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) *value = (int)setting("COUNTING_SM", 90) % 10;
    return CUDA_SUCCESS;
}

static int context;

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    *flags = 0;
    *active = is_used(device);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *retained, CUdevice device) {
    *retained = (CUcontext)&context;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *current) {
    *current = (CUcontext)&context;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext current) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice *device) {
    *device = current_device();
    return CUDA_SUCCESS;
}

/* A module is loaded on one device; a kernel of another module may be launched anywhere. */
static struct CUmod_st {
    int device;
} loaded[16];
struct CUfunc_st {
    const char *name;
    const struct CUmod_st *module;
};

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    struct CUfunc_st *made = malloc(sizeof *made);
    if (made == NULL) abort();
    *made = (struct CUfunc_st){strdup(name), module >= loaded && module < loaded + 16 ? module : NULL};
    *function = made;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned options, CUjit_option *names, void **values) {
    count("cuModuleLoadDataEx");
    *module = &loaded[current_device()];
    (*module)->device = current_device();
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    enum cudaStreamCaptureStatus found;
    cudaError_t error = cudaStreamIsCapturing(stream, &found);
    *status = (CUstreamCaptureStatus)found;
    return error == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

/* Called by the tests: the error of every launch from now on, or 0. */
static int failure;
void counting_fail_launches(int error) { failure = error; }

/* The kernel of this name for the host, if there is one. */
static void compute(const char *name, void **arguments, unsigned sizes[4]) {
    static void *library;
    const char *path = getenv("COUNTING_KERNELS");
    if (path == NULL) return;
    if (library == NULL) library = dlopen(path, RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "counting runtime: %s\n", dlerror());
        abort();
    }
    void (*kernel)(void **, unsigned *) = dlsym(library, name);
    if (kernel != NULL) kernel(arguments, sizes);
}

CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, CUstream stream, void **arguments, void **extra) {
    if (failure != 0) return failure;
    if (gx == 0 || gy == 0 || gz == 0 || gy > 65535 || bx * by * bz == 0 || bx * by * bz > 1024) return CUDA_ERROR_INVALID_VALUE;
    if (function->module != NULL && function->module->device != current_device()) return CUDA_ERROR_INVALID_HANDLE;
    launched_by_name(function->name, stream);
    compute(function->name, arguments, (unsigned[4]){gx, gy, bx, by});
    return CUDA_SUCCESS;
}
