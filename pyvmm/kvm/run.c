/*
 * The calls that need C: ioctls with the GIL released and errno in the result, KVM_RUN, its kick,
 * and the instruction RDVL.  _build.py puts the includes, the assertions of pyvmm's tables, and
 * fastmmio.c above this file.
 */

/* Make an ioctl, and repeat it after a signal.  Returns the result, or -errno. */
static int pyvmm_ioctl(int fd, unsigned long request, unsigned long argument)
{
	int result;

	do {
		result = ioctl(fd, request, argument);
	} while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : result;
}

static int pyvmm_one_reg(int fd, unsigned long request, uint64_t id, void *value)
{
	struct kvm_one_reg reg = { .id = id, .addr = (uintptr_t)value };

	return pyvmm_ioctl(fd, request, (unsigned long)&reg);
}

/*
 * Get or set registers in order, with packed values.  Returns the number done; if it is less than
 * count, *error is the errno of the next.
 */
static uint32_t pyvmm_one_regs(int fd, unsigned long request, const uint64_t *ids, uint32_t count,
			       void *values, int *error)
{
	char *value = values;
	uint32_t done;

	for (done = 0; done < count; done++) {
		*error = -pyvmm_one_reg(fd, request, ids[done], value);
		if (*error)
			break;
		value += 1UL << ((ids[done] & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT);
	}
	return done;
}

static int pyvmm_device_attr(int fd, unsigned long request, uint32_t group, uint64_t attr,
			     void *value)
{
	struct kvm_device_attr what = { .group = group, .attr = attr, .addr = (uintptr_t)value };

	return pyvmm_ioctl(fd, request, (unsigned long)&what);
}

/* Get or set a group's attributes in order, as above; each value has 8 bytes. */
static uint32_t pyvmm_device_attrs(int fd, unsigned long request, uint32_t group,
				   const uint64_t *attrs, uint32_t count, uint64_t *values,
				   int *error)
{
	uint32_t done;

	for (done = 0; done < count; done++) {
		*error = -pyvmm_device_attr(fd, request, group, attrs[done], &values[done]);
		if (*error)
			break;
	}
	return done;
}

static int pyvmm_irq_line(int vm, uint32_t irq, int level)
{
	struct kvm_irq_level line = { .irq = irq, .level = level };

	return pyvmm_ioctl(vm, KVM_IRQ_LINE, (unsigned long)&line);
}

/*
 * Set this thread's vector length to the host's longest within a limit in bytes.  Returns prctl's
 * length, or -errno (-EINVAL without SVE); *rdvl is the length that RDVL reads.
 */
static int pyvmm_sve_set_vl(unsigned long limit, uint64_t *rdvl)
{
	register uint64_t length asm("x0");
	int result = prctl(PR_SVE_SET_VL, limit, 0, 0, 0);

	if (result < 0)
		return -errno;
	asm volatile(".inst 0x04bf5020" : "=r"(length)); /* rdvl x0, #1, for every assembler */
	*rdvl = length;
	return result & PR_SVE_VL_LEN_MASK;
}

/* Make instructions that were written as data visible to all CPUs. */
static void pyvmm_sync_code(void *start, size_t size)
{
	__builtin___clear_cache((char *)start, (char *)start + size);
}

/* Returns the frequency of the system counter in Hz, as firmware has set it. */
static uint64_t pyvmm_counter_frequency(void)
{
	uint64_t frequency;

	asm volatile("mrs %0, cntfrq_el0" : "=r"(frequency));
	return frequency;
}

/* A vCPU's fd, its shared pages and its last exit. */
struct pyvmm_vcpu {
	int fd;
	pid_t thread; /* the thread in KVM_RUN, or 0; only that thread writes it */
	struct kvm_run *run;
	size_t size;

	uint32_t reason;
	uint32_t length;
	uint32_t is_write;
	uint64_t address;
	uint64_t data;

	struct pyvmm_fast_mmio *fast; /* completes exits without Python; may be NULL */
	uint32_t attention; /* transmitted bytes wait, or a UART has no exits left */
	uint64_t completed[2 * (PYVMM_UARTS + 4)]; /* see pyvmm_complete_mmio */
	uint64_t unclaimed; /* the address of the last access that no device claims */
};

#define PYVMM_KICK SIGRTMIN /* as in kvmtool */

static void pyvmm_kicked(int signal)
{
	(void)signal; /* the delivery makes KVM_RUN return EINTR */
}

static int pyvmm_vcpu_open(struct pyvmm_vcpu *vcpu, int fd, size_t size)
{
	struct sigaction action = { .sa_handler = pyvmm_kicked }; /* no SA_RESTART */
	void *run;

	if (sigaction(PYVMM_KICK, &action, NULL) < 0)
		return -errno;
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (run == MAP_FAILED)
		return -errno;
	*vcpu = (struct pyvmm_vcpu){ .fd = fd, .run = run, .size = size };
	return 0;
}

static void pyvmm_vcpu_close(struct pyvmm_vcpu *vcpu)
{
	munmap(vcpu->run, vcpu->size);
	vcpu->run = NULL;
}

/* Complete exits with fast, which must live as long as the vCPU.  Before the first run. */
static void pyvmm_vcpu_use_fast_mmio(struct pyvmm_vcpu *vcpu, struct pyvmm_fast_mmio *fast)
{
	size_t page = sysconf(_SC_PAGESIZE);

	fast->ring = (void *)((char *)vcpu->run + KVM_COALESCED_MMIO_PAGE_OFFSET * page);
	fast->entries = (page - sizeof(*fast->ring)) / sizeof(fast->ring->coalesced_mmio[0]);
	vcpu->fast = fast;
}

/* Returns a written value, which is in memory order: little endian. */
static uint64_t pyvmm_little_endian(const uint8_t *data, uint32_t length)
{
	uint64_t value = 0;

	memcpy(&value, data, length < sizeof(value) ? length : sizeof(value));
	return value;
}

static void pyvmm_unblock_kick(void)
{
	static _Thread_local int done;
	sigset_t kick;

	if (done)
		return;
	sigemptyset(&kick);
	sigaddset(&kick, PYVMM_KICK);
	pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
	done = 1;
}

static int pyvmm_wants_attention(struct pyvmm_fast_mmio *fast)
{
	for (int n = 0; n < PYVMM_UARTS; n++)
		if (fast->uart[n].base &&
		    (pyvmm_has_tx(fast, n) ||
		     !__atomic_load_n(&fast->uart[n].exits_left, __ATOMIC_RELAXED)))
			return 1;
	return 0;
}

/*
 * Repeat KVM_RUN until an exit that C does not complete.  Returns 0, or -errno: -EINTR consumes
 * the kick.
 *
 * No kick is lost.  The kicker sets immediate_exit, then reads thread and signals that thread.
 * This side writes thread, then enters KVM_RUN, which reads immediate_exit.  Each side writes
 * before it reads, with a full barrier between: at least one of them sees the other.  If the
 * signal comes before the system call, immediate_exit is already set.
 */
static int pyvmm_run(struct pyvmm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	int error;

	if (!run)
		return -EBADF; /* closed */
	pyvmm_unblock_kick();
	__atomic_store_n(&vcpu->thread, (pid_t)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	do {
		error = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? errno : 0;
	} while (!error && vcpu->fast && run->exit_reason == KVM_EXIT_MMIO &&
		 pyvmm_complete_mmio(vcpu->fast, run, vcpu->completed, &vcpu->unclaimed));
	__atomic_store_n(&vcpu->thread, 0, __ATOMIC_SEQ_CST);
	if (error == EINTR)
		__atomic_exchange_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	vcpu->attention = vcpu->fast && pyvmm_wants_attention(vcpu->fast);
	if (error)
		return -error;

	vcpu->reason = run->exit_reason;
	if (run->exit_reason == KVM_EXIT_MMIO) {
		vcpu->address = run->mmio.phys_addr;
		vcpu->length = run->mmio.len;
		vcpu->is_write = run->mmio.is_write;
		vcpu->data = run->mmio.is_write ?
			pyvmm_little_endian(run->mmio.data, run->mmio.len) : 0;
	}
	return 0;
}

/* Set the result of an MMIO read: KVM uses as many bytes as the access has. */
static void pyvmm_set_mmio_data(struct pyvmm_vcpu *vcpu, uint64_t value)
{
	if (vcpu->run)
		memcpy(vcpu->run->mmio.data, &value, sizeof(value));
}

/* From any thread, while the pages are mapped.  An ended thread gets no signal. */
static void pyvmm_kick(struct pyvmm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	pid_t thread;

	if (!run)
		return;
	__atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	thread = __atomic_load_n(&vcpu->thread, __ATOMIC_SEQ_CST);
	if (thread)
		syscall(SYS_tgkill, getpid(), thread, PYVMM_KICK);
}
