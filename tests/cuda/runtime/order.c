/* The order of work on several streams: who has waited for whom. Everything is done as soon as it is asked for, so a
   missing wait would never show; it is counted instead. */
#include "counting.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STREAMS = 256, RANGES = 1 << 10, FIRST = 0x1000 };

/* Per stream, how much of each stream's work is done for certain when its next work begins. */
struct clock {
    unsigned done[STREAMS];
};
static struct {
    cudaStream_t handle;
    int blocking;
    struct clock clock;
} streams[STREAMS] = {{.blocking = 1}};
static int known = 1;

/* By handle: what is done when the event is. */
static struct clock *events;
static size_t room;

/* Memory of a device that a copy on another stream than the default one has written, and products have read since. */
static struct {
    const char *start, *end;
    int writer, reader;
    unsigned written, read;
} ranges[RANGES];
static size_t count_of_ranges;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void *new_handle(void) {
    static uintptr_t next = FIRST;
    pthread_mutex_lock(&lock);
    void *handle = (void *)next;
    next += 16;
    pthread_mutex_unlock(&lock);
    return handle;
}

void order_new_stream(void *handle, int blocking) {
    pthread_mutex_lock(&lock);
    if (known == STREAMS) {
        fputs("counting runtime: more streams than places\n", stderr);
        abort();
    }
    streams[known].handle = handle;
    streams[known++].blocking = blocking;
    pthread_mutex_unlock(&lock);
}

/* The default stream is all that is not known. */
static int find(const void *handle) {
    for (int at = 1; at < known; at++)
        if (streams[at].handle == handle) return at;
    return 0;
}

static void join(struct clock *clock, const struct clock *other) {
    for (int at = 0; at < known; at++)
        if (other->done[at] > clock->done[at]) clock->done[at] = other->done[at];
}

/* One more piece of work on a stream. The default stream and those that block each other wait for each other. */
static unsigned work(int stream) {
    if (streams[stream].blocking)
        for (int at = 0; at < known; at++)
            if (streams[at].blocking) join(&streams[stream].clock, &streams[at].clock);
    return ++streams[stream].clock.done[stream];
}

static struct clock *event(const void *handle) {
    size_t at = ((uintptr_t)handle - FIRST) / 16;
    if (at >= room) {
        size_t larger = 2 * at + 64;
        events = realloc(events, larger * sizeof *events);
        if (events == NULL) abort();
        memset(events + room, 0, (larger - room) * sizeof *events);
        room = larger;
    }
    return &events[at];
}

void order_record(const void *handle, const void *stream) {
    pthread_mutex_lock(&lock);
    int at = find(stream);
    work(at);
    *event(handle) = streams[at].clock;
    pthread_mutex_unlock(&lock);
}

void order_wait(const void *stream, const void *handle) {
    pthread_mutex_lock(&lock);
    join(&streams[find(stream)].clock, event(handle));
    pthread_mutex_unlock(&lock);
}

void order_copy(const void *to, size_t size, const void *stream) {
    pthread_mutex_lock(&lock);
    int at = find(stream);
    unsigned now = work(at);
    const char *start = to, *end = start + size;
    size_t own = count_of_ranges;
    for (size_t i = 0; i < count_of_ranges; i++) {
        if (ranges[i].start >= end || start >= ranges[i].end) continue;
        const struct clock *clock = &streams[at].clock;
        if (ranges[i].read > clock->done[ranges[i].reader]) count("order: a copy over what may still be read");
        if (ranges[i].written > clock->done[ranges[i].writer]) count("order: a copy over another that may still run");
        if (ranges[i].start == start) own = i;
    }
    if (at != 0) {
        count(streams[at].blocking ? "order: a copy on a stream that waits for the default one"
                                   : "order: a copy beside the default stream");
        if (own == RANGES) abort();
        if (own == count_of_ranges) count_of_ranges++;
        ranges[own].start = start;
        ranges[own].end = end;
        ranges[own].writer = at;
        ranges[own].written = now;
        ranges[own].reader = 0;
        ranges[own].read = 0;
    }
    pthread_mutex_unlock(&lock);
}

/* A product on the default stream reads from here. */
void order_read(const void *from) {
    pthread_mutex_lock(&lock);
    unsigned now = work(0);
    for (size_t i = 0; i < count_of_ranges; i++) {
        if ((const char *)from < ranges[i].start || (const char *)from >= ranges[i].end) continue;
        count("order: a product with what came beside the default stream");
        if (ranges[i].written > streams[0].clock.done[ranges[i].writer])
            count("order: a product before its copy is there");
        ranges[i].reader = 0;
        ranges[i].read = now;
    }
    pthread_mutex_unlock(&lock);
}

/* Memory that is given back is nobody's any more. */
void order_forget(const void *start, size_t size) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < count_of_ranges; i++)
        if (ranges[i].start >= (const char *)start && ranges[i].start < (const char *)start + size)
            ranges[i] = ranges[--count_of_ranges];
    pthread_mutex_unlock(&lock);
}

/* The host has waited for all. */
void order_settle(void) {
    pthread_mutex_lock(&lock);
    for (int at = 0; at < known; at++)
        for (int other = 0; other < known; other++) join(&streams[at].clock, &streams[other].clock);
    pthread_mutex_unlock(&lock);
}
