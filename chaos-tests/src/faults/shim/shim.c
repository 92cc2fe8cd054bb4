/* Faults of the disk and of the clock, inside one process: preloaded, steered through a file that is mapped into memory.
 *
 * In:  CHAOS_SHIM names a file of 64-bit numbers; see `enum`. All zero: nothing happens.
 * Out: writes to regular files fail with an error, syncs fail or take longer, the time of day is another one.
 *      CHAOS_SYNCED names a file that gets a line "end path" for every file that was synced, with the end of what had been written
 *      to it when the sync began (its length, if nothing had been; space that is reserved ahead does not count), and a line
 *      "mv<tab>from<tab>to" for every file that got another name.
 * Note: standard output and error are left alone, for they are the log that a test reads. Files of other kinds too. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE_ERROR, SYNC_ERROR, SYNC_DELAY_US, CLOCK_OFFSET_MS, NUMBERS };

static volatile const int64_t *control;
static int synced = -1;

__attribute__((constructor)) static void begin(void) {
    const char *record = getenv("CHAOS_SYNCED"), *path = getenv("CHAOS_SHIM");
    if (record != NULL) synced = open(record, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (path == NULL) return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = mmap(NULL, NUMBERS * sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED) control = mapped;
}

/* Up to where each open file was written. */
enum { FILES = 65536 };
static volatile off_t ends[FILES];

static void wrote(int fd, off_t end) {
    if (fd >= 0 && fd < FILES && ends[fd] < end) ends[fd] = end;
}

int close(int fd) {
    if (fd >= 0 && fd < FILES) ends[fd] = 0;
    return (int)syscall(SYS_close, fd);
}

static int64_t number(int which) { return control == NULL ? 0 : control[which]; }

static int regular(int fd) {
    struct stat found;
    return fd > 2 && fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

/* Whether a write of so many bytes fails. A full disk still takes what has its blocks already, as a real one does. `at` below 0: wherever
 * the file stands. */
static int refused(int fd, off64_t at, size_t count) {
    int64_t error = number(WRITE_ERROR);
    if (error == 0 || !regular(fd)) return 0;
    struct stat found;
    if ((error == ENOSPC || error == EDQUOT) && fstat(fd, &found) == 0) {
        int flags = fcntl(fd, F_GETFL);
        if (at < 0) at = flags >= 0 && (flags & O_APPEND) ? found.st_size : lseek(fd, 0, SEEK_CUR);
        off64_t end = at + (off64_t)count;
        if (at >= 0 && end <= found.st_size && end <= (off64_t)found.st_blocks * 512) return 0;
    }
    errno = (int)error;
    return 1;
}

/* Whether taking space or making a file fails. */
static int refused_anew(int fd) {
    int64_t error = number(WRITE_ERROR);
    if (error == 0 || !regular(fd)) return 0;
    errno = (int)error;
    return 1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    if (refused(fd, -1, count)) return -1;
    ssize_t done = syscall(SYS_write, fd, bytes, count);
    if (done > 0 && synced >= 0 && regular(fd)) wrote(fd, lseek(fd, 0, SEEK_CUR));
    return done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    if (refused(fd, at, count)) return -1;
    ssize_t done = syscall(SYS_pwrite64, fd, bytes, count, at);
    if (done > 0) wrote(fd, at + done);
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite64(fd, bytes, count, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    size_t total = 0;
    for (int i = 0; i < count; i++) total += parts[i].iov_len;
    return refused(fd, -1, total) ? -1 : syscall(SYS_writev, fd, parts, count);
}

int fallocate64(int fd, int mode, off64_t at, off64_t length) {
    return refused_anew(fd) ? -1 : (int)syscall(SYS_fallocate, fd, mode, at, length);
}

static void record(int fd, off_t end) {
    char link[32], line[4200];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int start = snprintf(line, sizeof line, "%lld ", (long long)end);
    ssize_t path = readlink(link, line + start, sizeof line - start - 1);
    if (path <= 0) return;
    line[start + path] = '\n';
    /* One write, so that lines of several threads do not mix. */
    if (syscall(SYS_write, synced, line, start + path + 1) < 0) return;
}

int rename(const char *from, const char *to) {
    int done = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    int saved = errno;
    char line[8400];
    int length = snprintf(line, sizeof line, "mv\t%s\t%s\n", from, to);
    if (done == 0 && synced >= 0 && length > 0 && (size_t)length < sizeof line) {
        if (syscall(SYS_write, synced, line, length) < 0) return done;
    }
    errno = saved;
    return done;
}

static int sync_with(long call, int fd) {
    struct stat before;
    off_t end = fd >= 0 && fd < FILES ? ends[fd] : 0;
    int known = synced >= 0 && fstat(fd, &before) == 0 && S_ISREG(before.st_mode);
    if (regular(fd)) {
        int64_t delay = number(SYNC_DELAY_US), error = number(SYNC_ERROR);
        if (delay > 0) {
            struct timespec pause = {delay / 1000000, delay % 1000000 * 1000};
            nanosleep(&pause, NULL);
        }
        if (error != 0) {
            errno = (int)error;
            return -1;
        }
    }
    int done = (int)syscall(call, fd);
    if (done == 0 && known) record(fd, end > 0 ? end : before.st_size);
    return done;
}

int fsync(int fd) { return sync_with(SYS_fsync, fd); }

int fdatasync(int fd) { return sync_with(SYS_fdatasync, fd); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    long done = syscall(SYS_clock_gettime, clock, now);
    int64_t offset = number(CLOCK_OFFSET_MS);
    if (done == 0 && offset != 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t nanos = now->tv_nsec + offset % 1000 * 1000000;
        now->tv_sec += offset / 1000 + (nanos >= 1000000000) - (nanos < 0);
        now->tv_nsec = nanos - (nanos >= 1000000000) * 1000000000 + (nanos < 0) * 1000000000;
    }
    return (int)done;
}
