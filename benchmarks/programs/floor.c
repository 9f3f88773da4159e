/*
 * The minimal VMM in C: one vCPU, KVM_RUN in a loop, every read returns zero.
 *
 * usage: floor KIND
 *
 * Measures a guest's access with a userspace exit, in ns.  KIND is read, write, or byte (a read of a
 * status and a write whose byte is stored).  With KIND first it prints a newline at the guest's first
 * store, and waits to be killed.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RAM 0x80000000ull
#define SIZE 0x200000
#define COUNT 2000
#define DISTRIBUTOR 0x3fff0000ull
#define REDISTRIBUTOR 0x3ffd0000ull

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static int set(int fd, uint32_t group, uint64_t attr, void *value)
{
	struct kvm_device_attr a = { .group = group, .attr = attr, .addr = (uintptr_t)value };

	return ioctl(fd, KVM_SET_DEVICE_ATTR, &a);
}

struct kind {
	const char *name;
	int exits; /* of one access */
	uint32_t code[3];
};

static const struct kind kinds[] = {
	{ "read", 1, { 0xb9400001, 0x17ffffff } }, /* ldr w1, [x0]; b .-4 */
	{ "write", 1, { 0xb9000001, 0x17ffffff } }, /* str w1, [x0]; b .-4 */
	{ "byte", 2, { 0x39401402, 0x39000001, 0x17fffffe } }, /* ldrb w2, [x0, 5]; strb w1, [x0]; b .-8 */
	{ "first", 1, { 0x39000001, 0x14000000 } }, /* strb w1, [x0]; b . */
};

/* The guest's output, in a buffer as for a terminal */
static char sent[4096];
static unsigned sent_size;

static int run_once(int vcpu, struct kvm_run *run)
{
	if (ioctl(vcpu, KVM_RUN, 0) < 0 || run->exit_reason != KVM_EXIT_MMIO)
		return -1;
	if (run->mmio.is_write)
		sent[sent_size++ % sizeof(sent)] = run->mmio.data[0];
	else
		memset(run->mmio.data, 0, sizeof(run->mmio.data));
	return 0;
}

int main(int argc, char **argv)
{
	const struct kind *kind = kinds;
	int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0), vcpu;
	char *ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = { 0, 0, RAM, SIZE, (uintptr_t)ram };
	struct kvm_create_device gic = { .type = KVM_DEV_TYPE_ARM_VGIC_V3 };
	uint64_t pc = RAM, address = 0x1000000, place;
	struct kvm_one_reg reg;
	struct kvm_vcpu_init init;
	struct kvm_run *run;
	uint64_t before = 0;

	if (vm < 0)
		return perror("/dev/kvm"), 1;
	while (argc > 1 && strcmp(argv[1], kind->name))
		if (++kind == kinds + sizeof(kinds) / sizeof(kinds[0]))
			return fprintf(stderr, "no such kind\n"), 2;
	memcpy(ram, kind->code, sizeof(kind->code));
	ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	memset(&init, 0, sizeof(init));
	ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init);
	ioctl(vcpu, KVM_ARM_VCPU_INIT, &init);
	if (ioctl(vm, KVM_CREATE_DEVICE, &gic) == 0) { /* with a GIC, like every real machine */
		place = DISTRIBUTOR;
		set(gic.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &place);
		place = REDISTRIBUTOR;
		set(gic.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, &place);
		set(gic.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL);
	}
	reg = (struct kvm_one_reg){ KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |
				    KVM_REG_ARM_CORE_REG(regs.pc), (uintptr_t)&pc };
	ioctl(vcpu, KVM_SET_ONE_REG, &reg);
	reg = (struct kvm_one_reg){ KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |
				    KVM_REG_ARM_CORE_REG(regs.regs[0]), (uintptr_t)&address };
	ioctl(vcpu, KVM_SET_ONE_REG, &reg);
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED,
		   vcpu, 0);
	if (!strcmp(kind->name, "first")) {
		if (run_once(vcpu, run) || write(1, "\n", 1) != 1)
			return perror("KVM_RUN"), 1;
		pause();
	}
	for (int n = -64 * kind->exits; n < COUNT * kind->exits; n++) {
		if (n == 0)
			before = now();
		if (run_once(vcpu, run))
			return perror("KVM_RUN"), 1;
	}
	printf("%.1f\n", (double)(now() - before) / COUNT);
	return 0;
}
