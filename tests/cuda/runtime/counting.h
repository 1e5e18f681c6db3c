/* The counters, shared by the files of the counting runtime. */
#ifndef COUNTING_H
#define COUNTING_H

#include <stddef.h>
#include <stdio.h>

/* One more call of this name, which must stay where it is. */
void count(const char *name);

/* The same for what makes a real device and its host wait; with COUNTING_BACKTRACE, the callers are printed. */
void count_wait(const char *name);

/* The number in this environment variable. */
long setting(const char *name, long otherwise);

/* Parts of the report, each by the file that counts it: printed, and set back. */
void report_kernels(FILE *file);
void reset_kernels(void);
void report_memory(FILE *file);
void reset_memory(void);

/* Graphs: true if this stream is captured. */
int is_captured(const void *stream);

/* One more call on a stream, in the graph if it is captured; the second gives false if it is not. */
void count_on(const void *stream, const char *name);
int count_captured(const void *stream, const char *name);

/* The host waits for a stream, or for all: in the thread of a capture that ends it, and this is true. */
int waits_in_capture(const void *stream, int for_all);
void report_graphs(FILE *file);
void reset_graphs(void);

/* The kernel behind a handle has been launched. */
void launched(const void *kernel, const void *stream);

/* The same for a kernel that was compiled at run time and has no host function; the name must stay where it is. */
void launched_by_name(const char *name, const void *stream);

/* The mangled name of the latest kernel. */
const char *last_launched(void);

/* The order of work on streams: handles of their own, and what is read and written there. */
void *new_handle(void);
void order_new_stream(void *handle, int blocking);
void order_record(const void *event, const void *stream);
void order_wait(const void *stream, const void *event);
void order_copy(const void *to, size_t size, const void *stream);
void order_read(const void *from);
void order_forget(const void *start, size_t size);
void order_settle(void);

/* The device that this thread has chosen. */
int current_device(void);
int device_count(void);

/* True if something is held of a device: it has a context then. */
int is_used(int device);

/* The memory of each device, in bytes. */
size_t device_memory(void);

#endif
