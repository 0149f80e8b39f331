/* A slower disk: each fdatasync and fsync takes SLOWER_MICROSECONDS longer. See slower_disk.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static int slower(const char *name, int descriptor)
{
    int (*sync)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int result = sync(descriptor);
    const char *microseconds = getenv("SLOWER_MICROSECONDS");
    if (microseconds)
        usleep((useconds_t)atoi(microseconds));
    return result;
}

int fdatasync(int descriptor) { return slower("fdatasync", descriptor); }

int fsync(int descriptor) { return slower("fsync", descriptor); }
