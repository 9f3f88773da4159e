/* virtio-mmio, version 2.  A buffer is one descriptor, and its slot in the queue. */
#pragma once

#include "common.h"

#define VIRTQ_SIZE		16
#define VIRTIO_RING_F_EVENT_IDX	(1ull << 29)
#define VIRTIO_F_VERSION_1	(1ull << 32)
#define VIRTIO_INT_VRING	1
#define VIRTIO_INT_CONFIG	2

struct virtq {
	struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} desc[VIRTQ_SIZE] __attribute__((aligned(16)));
	struct {
		uint16_t flags, idx, ring[VIRTQ_SIZE], used_event;
	} avail;
	struct {
		uint16_t flags, idx;
		struct {
			uint32_t id, len;
		} ring[VIRTQ_SIZE];
		uint16_t avail_event;
	} used __attribute__((aligned(4)));

	/* The driver's own */
	uintptr_t device;
	uint32_t index;
	uint16_t seen;				/* of used.idx */
	bool event_idx;
};

bool virtio_probe(uintptr_t device, uint32_t id);
uint64_t virtio_negotiate(uintptr_t device, uint64_t wanted);	/* what was agreed upon */
void virtio_start(uintptr_t device);
bool virtio_needs_reset(uintptr_t device);
uint32_t virtio_acknowledge(uintptr_t device);	/* why it interrupted: VIRTIO_INT_* */
void virtq_init(struct virtq *queue, uintptr_t device, uint32_t index, bool event_idx);
void virtq_add(struct virtq *queue, unsigned int slot, void *buffer, uint32_t size, bool write);
void virtq_kick(struct virtq *queue, uint16_t added);	/* unless the device needs none */
bool virtq_has_used(struct virtq *queue);	/* if not, an interrupt will tell */
unsigned int virtq_take(struct virtq *queue, uint32_t *written);
