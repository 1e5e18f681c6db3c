/* Memory: every block, on a device or pinned, is address space of this process; pages come when they are written to.
   With COUNTING_FILL, each byte of a block is that at first. */
#define _GNU_SOURCE
#include "counting.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HOST = -1, DEVICES = 16 };

/* More than this is counted and not copied, or filled: weights are not looked at, and would cost real memory. */
static const size_t COPIED = 1 << 20;

struct block {
    char *start;
    size_t size;
    int device;
    /* Memory of others, which is pinned. */
    int registered;
    struct block *next;
};
static struct block *blocks;
static struct {
    size_t held, peak;
    unsigned long blocks;
} devices[DEVICES];
static size_t limit;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Called by the tests: from now on an allocation beyond this many bytes on a device fails. 0: as COUNTING_MEMORY says. */
void counting_limit_memory(size_t bytes) { limit = bytes; }

/* Called by the tests: so many allocations on devices succeed from now on, and none after them. Below 0: all. */
static long left = -1;
void counting_fail_after(long allocations) { left = allocations; }

static size_t room(void) { return limit == 0 ? device_memory() : limit; }

int is_used(int device) { return device >= 0 && device < DEVICES && devices[device].held > 0; }

static int fill(void) { return (int)setting("COUNTING_FILL", 0); }

void reset_memory(void) {
    pthread_mutex_lock(&lock);
    for (int device = 0; device < DEVICES; device++) {
        devices[device].peak = devices[device].held;
        devices[device].blocks = 0;
    }
    pthread_mutex_unlock(&lock);
}

void report_memory(FILE *file) {
    pthread_mutex_lock(&lock);
    for (int device = 0; device < device_count() && device < DEVICES; device++)
        fprintf(file, "device\t%zu\t%zu\t%lu\n", devices[device].held, devices[device].peak, devices[device].blocks);
    pthread_mutex_unlock(&lock);
}

static cudaError_t allocate(void **start, size_t size, int device) {
    pthread_mutex_lock(&lock);
    *start = NULL;
    int lacking = device != HOST && (left == 0 || devices[device].held + size > room());
    if (lacking) {
        pthread_mutex_unlock(&lock);
        return cudaErrorMemoryAllocation;
    }
    if (device != HOST && left > 0) left--;
    struct block *block = malloc(sizeof *block);
    if (size == 0) size = 512;
    void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == NULL || mapped == MAP_FAILED) abort();
    *block = (struct block){mapped, size, device, 0, blocks};
    blocks = block;
    if (device != HOST) {
        devices[device].held += size;
        devices[device].blocks++;
        if (devices[device].held > devices[device].peak) devices[device].peak = devices[device].held;
    }
    pthread_mutex_unlock(&lock);
    if (fill() != 0 && size <= COPIED) memset(mapped, fill(), size);
    *start = mapped;
    return cudaSuccess;
}

static cudaError_t release(void *start) {
    pthread_mutex_lock(&lock);
    for (struct block **link = &blocks; *link != NULL; link = &(*link)->next) {
        struct block *block = *link;
        if (block->start != start) continue;
        *link = block->next;
        if (block->device != HOST) devices[block->device].held -= block->size;
        if (!block->registered) munmap(block->start, block->size);
        order_forget(block->start, block->size);
        free(block);
        break;
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

/* The block that holds this address. */
static int find(const void *address, struct block *found) {
    pthread_mutex_lock(&lock);
    struct block *block = blocks;
    while (block != NULL && !((char *)address >= block->start && (char *)address < block->start + block->size))
        block = block->next;
    if (block != NULL) *found = *block;
    pthread_mutex_unlock(&lock);
    return block != NULL;
}

cudaError_t cudaMalloc(void **start, size_t size) {
    count("cudaMalloc");
    return allocate(start, size, current_device());
}

cudaError_t cudaMallocAsync(void **start, size_t size, cudaStream_t stream) { return cudaMalloc(start, size); }

cudaError_t cudaFree(void *start) {
    count("cudaFree");
    return release(start);
}

cudaError_t cudaFreeAsync(void *start, cudaStream_t stream) { return cudaFree(start); }

cudaError_t cudaHostAlloc(void **start, size_t size, unsigned flags) {
    count("cudaHostAlloc");
    return allocate(start, size, HOST);
}

cudaError_t cudaFreeHost(void *start) {
    count("cudaFreeHost");
    return release(start);
}

/* As a real device has it, memory is pinned once, and unpinned by the address that it was pinned by. */
cudaError_t cudaHostRegister(void *start, size_t size, unsigned flags) {
    struct block there;
    if (find(start, &there) || find((char *)start + size - 1, &there)) return cudaErrorHostMemoryAlreadyRegistered;
    if (setting("COUNTING_PINS", 1) == 0) return cudaErrorNotSupported;
    count("cudaHostRegister");
    struct block *block = malloc(sizeof *block);
    if (block == NULL) abort();
    pthread_mutex_lock(&lock);
    *block = (struct block){start, size, HOST, 1, blocks};
    blocks = block;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *start) {
    struct block there;
    if (!find(start, &there) || !there.registered || there.start != start) return cudaErrorHostMemoryNotRegistered;
    count("cudaHostUnregister");
    return release(start);
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *total = room();
    *free = room() - devices[current_device()].held;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
    struct block block;
    memset(attributes, 0, sizeof *attributes);
    if (!find(address, &block)) {
        attributes->type = cudaMemoryTypeUnregistered;
        return cudaSuccess;
    }
    attributes->type = block.device == HOST ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = block.device == HOST ? 0 : block.device;
    attributes->hostPointer = block.device == HOST ? (void *)address : NULL;
    attributes->devicePointer = (void *)address;
    return cudaSuccess;
}

/* A single value that comes back was computed, and kernels compute nothing. A byte answers a question: "are all finite?"
   with yes, "is any negative?" with no. Counts are 0; so are numbers, unless memory is filled with one. */
static void answer(void *to, size_t size) {
    int any = strstr(last_launched(), "14or_kernel_cuda") != NULL;
    if (size == 1 || size == 8 || fill() == 0) memset(to, size == 1 && !any, size);
}

static cudaError_t copy(void *to, const void *from, size_t size, const void *stream) {
    struct block target, source;
    int into = find(to, &target), out_of = find(from, &source);
    int to_device = into && target.device != HOST, from_device = out_of && source.device != HOST;
    const char *name = "copy within the host";
    if (to_device && from_device)
        name = target.device == source.device ? "copy within a device" : "copy between devices";
    else if (to_device)
        name = out_of ? "copy to the device, pinned" : "copy to the device, pageable";
    else if (from_device)
        name = into ? "copy from the device, pinned" : "copy from the device, pageable";
    if (count_captured(stream, name)) return cudaSuccess;
    if (to_device && !out_of)
        count_wait(name);
    else
        count(name);
    if (size <= COPIED) memcpy(to, from, size);
    if (from_device && !to_device && size <= sizeof(double)) answer(to, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (!is_captured(stream)) order_copy(to, size, stream);
    return copy(to, from, size, stream);
}

cudaError_t cudaMemcpyPeerAsync(void *to, int target, const void *from, int source, size_t size, cudaStream_t stream) {
    return copy(to, from, size, stream);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    if (waits_in_capture(NULL, 1)) return cudaErrorStreamCaptureImplicit;
    count_wait("cudaMemcpy");
    return copy(to, from, size, NULL);
}

cudaError_t cudaMemsetAsync(void *start, int value, size_t size, cudaStream_t stream) {
    if (count_captured(stream, "cudaMemsetAsync")) return cudaSuccess;
    count("cudaMemsetAsync");
    if (size <= COPIED) memset(start, value, size);
    return cudaSuccess;
}
