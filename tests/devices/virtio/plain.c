/* The data path in C, without KVM and Python: for this machine, see plain.py. */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "datapath.h"
#include "splitqueue.c"
#include "blk.c"
