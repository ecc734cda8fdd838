/* SPDX-License-Identifier: MIT
 *
 * LD_PRELOAD: puts the program's code into memory without a file, as it is in
 * a program that unpacks itself.
 */
#define _GNU_SOURCE
#include <link.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void
move(uintptr_t from, size_t n)
{
	void *to = mmap(NULL, n, PROT_READ | PROT_WRITE,
	    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (to == MAP_FAILED)
		abort();
	memcpy(to, (void *)from, n);
	if (mprotect(to, n, PROT_READ | PROT_EXEC) < 0 ||
	    mremap(to, n, n, MREMAP_MAYMOVE | MREMAP_FIXED, from) ==
	    MAP_FAILED)
		abort();
}

/* The program is the first object. */
static int
move_code(struct dl_phdr_info *program, size_t size, void *data)
{
	uintptr_t page = (uintptr_t)getpagesize();

	(void)size;
	(void)data;
	for (int i = 0; i < program->dlpi_phnum; i++) {
		const ElfW(Phdr) *h = &program->dlpi_phdr[i];
		uintptr_t from = program->dlpi_addr + h->p_vaddr;

		if (h->p_type == PT_LOAD && (h->p_flags & PF_X))
			move(from & -page, ((from + h->p_memsz + page - 1) &
			    -page) - (from & -page));
	}
	return 1;
}

__attribute__((constructor)) static void
start(void)
{
	dl_iterate_phdr(move_code, NULL);
}
