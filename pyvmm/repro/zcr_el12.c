// SPDX-License-Identifier: GPL-2.0
/*
 * zcr_el12: writes ZCR_EL12, the experiment of "[PATCH v4 00/25] KVM: arm64: SVE guest support"
 * for known issue 1.  As a control it shortens the host's vectors, as a CPU with that bug would.
 *
 *   mode=0 value=N   write N to ZCR_EL12 each time kvm_arch_vcpu_put_fp() returns
 *   mode=1           limit ZCR_EL2 to ZCR_EL12 while a process with SVE is in user space
 *
 * Only on CPU `cpu`.  Parameters have the values that the last probe read.
 */

#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/smp.h>
#include <linux/thread_info.h>
#include <linux/version.h>

#include <asm/barrier.h>
#include <asm/sysreg.h>
#include <asm/virt.h>

#define LEN			0xfUL		/* ZCR_ELx.LEN */
#define PFR0_SVE(pfr0)		((pfr0) >> 32 & 0xf)
/* By encoding: if E2H is 1, the name CPTR_EL2 selects another register.  Source: Arm DDI 0487, D23.
*/
#define CPTR_EL2		sys_reg(3, 4, 1, 1, 2)

enum { HACK, CONTROL };

static int mode;
module_param(mode, int, 0444);
static int cpu;
module_param(cpu, int, 0444);
static ulong value;
module_param(value, ulong, 0444);

static ulong hits, last_zcr_el12, last_zcr_el2, last_hcr_el2, last_cptr_el2;
module_param(hits, ulong, 0444);
module_param(last_zcr_el12, ulong, 0444);
module_param(last_zcr_el2, ulong, 0444);
module_param(last_hcr_el2, ulong, 0444);
module_param(last_cptr_el2, ulong, 0444);

/* For the control: ZCR_EL2 of that CPU before it was lowered. */
static ulong before;
static bool lowered;

static bool is_here(void)
{
	return raw_smp_processor_id() == cpu;
}

static void note(void)
{
	last_zcr_el12 = read_sysreg_s(SYS_ZCR_EL12);
	last_zcr_el2 = read_sysreg_s(SYS_ZCR_EL2);
	last_hcr_el2 = read_sysreg(hcr_el2);
	last_cptr_el2 = read_sysreg_s(CPTR_EL2);
	hits++;
}

static int put_returns(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	if (is_here()) {
		write_sysreg_s(value, SYS_ZCR_EL12);
		isb();
		note();
	}
	return 0;
}

static void lower(void)
{
	ulong zcr = read_sysreg_s(SYS_ZCR_EL2);
	ulong guest = read_sysreg_s(SYS_ZCR_EL12) & LEN;

	if (guest >= (zcr & LEN))
		return;
	if (!lowered)
		before = zcr;
	lowered = true;
	write_sysreg_s((zcr & ~LEN) | guest, SYS_ZCR_EL2);
	isb();
	note();
}

static int state_is_loaded(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	if (is_here() && test_thread_flag(TIF_SVE))
		lower();
	return 0;
}

/* The kernel saves with its own length: if ZCR_EL2 differs, it warns and kills the task. */
static void restore_zcr(void *unused)
{
	if (!lowered)
		return;
	write_sysreg_s(before, SYS_ZCR_EL2);
	isb();
	lowered = false;
}

static int state_is_saved(struct kprobe *probe, struct pt_regs *regs)
{
	if (is_here())
		restore_zcr(NULL);
	return 0;
}

static struct kretprobe put_probe = {
	.kp.symbol_name = "kvm_arch_vcpu_put_fp",
	.handler = put_returns,
	.maxactive = 64,
};
static struct kretprobe load_probe = {
	.kp.symbol_name = "fpsimd_restore_current_state",
	.handler = state_is_loaded,
	.maxactive = 64,
};
static struct kretprobe access_probe = {
	.kp.symbol_name = "do_sve_acc",
	.handler = state_is_loaded,
	.maxactive = 64,
};
static struct kretprobe *control_probes[] = {&load_probe, &access_probe};
/* The function that saves a task's registers: its names since 6.8 and before. */
static const char *const savers[] = {"fpsimd_save_user_state", "fpsimd_save"};
static struct kprobe save_probe = {
	.pre_handler = state_is_saved,
};

static int register_save_probe(void)
{
	int error = -ENOENT;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(savers) && error; i++) {
		save_probe.symbol_name = savers[i];
		save_probe.addr = NULL;
		save_probe.flags = 0;
		error = register_kprobe(&save_probe);
	}
	return error;
}

static int start_control(void)
{
	int error;

	/* Linux 5.10 crashed with these probes; 6.1, 6.12 and 7.2 work. */
	if (LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0))
		return -EOPNOTSUPP;
	error = register_save_probe();
	if (error)
		return error;
	error = register_kretprobes(control_probes, ARRAY_SIZE(control_probes));
	if (error)
		unregister_kprobe(&save_probe);
	return error;
}

static int __init zcr_el12_init(void)
{
	if (!is_kernel_in_hyp_mode() || !PFR0_SVE(read_sysreg(id_aa64pfr0_el1)))
		return -EOPNOTSUPP;
	return mode == HACK ? register_kretprobe(&put_probe) : start_control();
}

static void __exit zcr_el12_exit(void)
{
	if (mode == HACK) {
		unregister_kretprobe(&put_probe);
		return;
	}
	unregister_kretprobes(control_probes, ARRAY_SIZE(control_probes));
	smp_call_function_single(cpu, restore_zcr, NULL, 1);
	unregister_kprobe(&save_probe);
}

module_init(zcr_el12_init);
module_exit(zcr_el12_exit);
MODULE_DESCRIPTION("Writes ZCR_EL12, or limits ZCR_EL2 to it");
MODULE_LICENSE("GPL");
