/* Calls by name, and the report of everything that was counted. */
#define _GNU_SOURCE
#include "counting.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Keyed by the name's address. One name at two addresses has two counters, which the reader adds up. */
enum { SIZE = 1 << 12 };
static struct {
    const char *name;
    unsigned long calls;
} counters[SIZE];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void count(const char *name) {
    pthread_mutex_lock(&lock);
    size_t at = (uintptr_t)name % SIZE, tries = 0;
    while (counters[at].name != NULL && counters[at].name != name && tries++ < SIZE) at = (at + 1) % SIZE;
    if (tries >= SIZE) {
        fputs("counting runtime: more names than counters\n", stderr);
        abort();
    }
    counters[at].name = name;
    counters[at].calls++;
    pthread_mutex_unlock(&lock);
}

/* Set by the tests, which know the names and lines of their own code. */
void (*counting_on_wait)(const char *name);

void count_wait(const char *name) {
    count(name);
    if (counting_on_wait != NULL) {
        counting_on_wait(name);
    } else if (getenv("COUNTING_BACKTRACE") != NULL) {
        void *frames[64];
        int found = backtrace(frames, 64);
        fprintf(stderr, "counting runtime: %s, called by\n", name);
        backtrace_symbols_fd(frames, found, STDERR_FILENO);
    }
}

long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value == NULL ? otherwise : atol(value);
}

/* Called by the tests: everything from zero. Memory that is held stays held; its peak starts there. */
void counting_reset(void) {
    pthread_mutex_lock(&lock);
    for (size_t at = 0; at < SIZE; at++) counters[at].calls = 0;
    pthread_mutex_unlock(&lock);
    reset_kernels();
    reset_graphs();
    reset_memory();
}

/* Called by the tests: one line for each counter, its columns separated by tabs. 0 if the file could not be written. */
int counting_report(const char *path) {
    FILE *file = fopen(path, "w");
    if (file == NULL) return 0;
    pthread_mutex_lock(&lock);
    for (size_t at = 0; at < SIZE; at++)
        if (counters[at].calls > 0) fprintf(file, "call\t%lu\t%s\n", counters[at].calls, counters[at].name);
    pthread_mutex_unlock(&lock);
    report_kernels(file);
    report_graphs(file);
    report_memory(file);
    return fclose(file) == 0;
}

/* A program that ends without the destructors of its libraries comes by here. */
static void report_at_end(void);
void _exit(int status) {
    report_at_end();
    syscall(SYS_exit_group, status);
    __builtin_unreachable();
}

/* A program that knows nothing of the counters leaves its report at its end. */
__attribute__((destructor)) static void report_at_end(void) {
    const char *path = getenv("COUNTING_REPORT");
    if (path != NULL) counting_report(path);
}
