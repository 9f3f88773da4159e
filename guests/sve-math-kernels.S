/*
 * Kernels for any vector length, and the same in scalar code.  Both add products in the same order,
 * fused, so that their results are equal to the last bit.
 *
 * Source: Arm DDI 0487, C8 (the SVE instructions); DDI 0584, first-fault loads.
 */

	.arch	armv8-a+sve

	.text

/* x0: n, x1: x, x2: y, x3: a.  y += a * x, of n doubles. */
	.global	sve_daxpy
sve_daxpy:
	ptrue	p1.d
	ld1rd	{z0.d}, p1/z, [x3]
	mov	x4, #0
	whilelo	p0.d, x4, x0
	b.none	2f
1:	ld1d	{z1.d}, p0/z, [x1, x4, lsl #3]
	ld1d	{z2.d}, p0/z, [x2, x4, lsl #3]
	fmla	z2.d, p0/m, z1.d, z0.d
	st1d	{z2.d}, p0, [x2, x4, lsl #3]
	incd	x4
	whilelo	p0.d, x4, x0
	b.first	1b
2:	ret

	.global	scalar_daxpy
scalar_daxpy:
	ldr	d0, [x3]
	cbz	x0, 2f
1:	ldr	d1, [x1], #8
	ldr	d2, [x2]
	fmadd	d2, d1, d0, d2
	str	d2, [x2], #8
	subs	x0, x0, #1
	b.ne	1b
2:	ret

/* x0: a string.  Returns its length; reads behind it only where memory is accessible. */
	.global	sve_strlen
sve_strlen:
	mov	x1, x0
	ptrue	p0.b
1:	setffr
	ldff1b	{z0.b}, p0/z, [x0, xzr]
	rdffr	p1.b, p0/z			/* the bytes that were loaded */
	cmpeq	p2.b, p1/z, z0.b, #0
	b.any	2f
	incp	x0, p1.b
	b	1b
2:	brkb	p2.b, p1/z, p2.b		/* the bytes before the first zero */
	incp	x0, p2.b
	sub	x0, x0, x1
	ret

/* x0: n, x1: a, x2: b, x3: c.  c = a * b, of n rows of n doubles. */
	.global	sve_matmul
sve_matmul:
	ptrue	p1.d
	lsl	x9, x0, #3			/* bytes of a row */
	mov	x4, x0
1:	mov	x5, #0				/* the first column of a vector of columns */
	whilelo	p0.d, x5, x0
2:	mov	z0.d, #0
	mov	x6, x1
	add	x7, x2, x5, lsl #3
	mov	x8, x0
3:	ld1rd	{z1.d}, p1/z, [x6]
	ld1d	{z2.d}, p0/z, [x7]
	fmla	z0.d, p0/m, z1.d, z2.d
	add	x6, x6, #8
	add	x7, x7, x9
	subs	x8, x8, #1
	b.ne	3b
	st1d	{z0.d}, p0, [x3, x5, lsl #3]
	incd	x5
	whilelo	p0.d, x5, x0
	b.first	2b
	add	x1, x1, x9
	add	x3, x3, x9
	subs	x4, x4, #1
	b.ne	1b
	ret

	.global	scalar_matmul
scalar_matmul:
	lsl	x9, x0, #3
	mov	x4, x0
1:	mov	x5, #0
2:	fmov	d0, xzr
	mov	x6, x1
	add	x7, x2, x5, lsl #3
	mov	x8, x0
3:	ldr	d1, [x6], #8
	ldr	d2, [x7]
	fmadd	d0, d1, d2, d0
	add	x7, x7, x9
	subs	x8, x8, #1
	b.ne	3b
	str	d0, [x3, x5, lsl #3]
	add	x5, x5, #1
	cmp	x5, x0
	b.lo	2b
	add	x1, x1, x9
	add	x3, x3, x9
	subs	x4, x4, #1
	b.ne	1b
	ret

/* The vector length in bytes. */
	.global	sve_rdvl
sve_rdvl:
	rdvl	x0, #1
	ret
