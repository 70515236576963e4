#include "libc.h"

#include <elf.h>
#include <link.h>
#include <stddef.h>
#include <stdint.h>

bool libc_same(const char *one, const char *other) {
    while (*one != '\0' && *one == *other)
        one++, other++;
    return *one == *other;
}

/* What of a library says where its symbols are. */
struct tables {
    const char *strings;
    const ElfW(Sym) * symbols;
    const uint32_t *hash; /* DT_GNU_HASH, which C libraries have had since 2006 */
    const char *soname;
};

/* The loader has made addresses of the offsets, except in libraries that cannot be written to. */
static const void *place(const struct link_map *library, ElfW(Addr) at) {
    return (const void *)(at < library->l_addr ? library->l_addr + at : at);
}

static bool read_tables(const struct link_map *library, struct tables *tables) {
    size_t soname = 0;
    for (const ElfW(Dyn) *entry = library->l_ld; entry != NULL && entry->d_tag != DT_NULL;
         entry++) {
        if (entry->d_tag == DT_STRTAB)
            tables->strings = place(library, entry->d_un.d_ptr);
        if (entry->d_tag == DT_SYMTAB)
            tables->symbols = place(library, entry->d_un.d_ptr);
        if (entry->d_tag == DT_GNU_HASH)
            tables->hash = place(library, entry->d_un.d_ptr);
        if (entry->d_tag == DT_SONAME)
            soname = entry->d_un.d_val;
    }
    if (tables->strings == NULL || tables->symbols == NULL || tables->hash == NULL)
        return false;
    tables->soname = tables->strings + soname;
    return true;
}

static uint32_t hash_of(const char *name) {
    uint32_t hash = 5381;
    for (const char *letter = name; *letter != '\0'; letter++)
        hash = hash * 33 + (unsigned char)*letter;
    return hash;
}

/* The table: counts of buckets, of the first symbol, of words of a filter, its shift; the filter;
 * first symbol of each bucket; hashes of symbols, the last of a bucket with its lowest bit set. All
 * versions of the functions that are looked for here are one function. */
static const ElfW(Sym) * find_symbol(const struct tables *tables, const char *name) {
    uint32_t buckets = tables->hash[0], first = tables->hash[1], words = tables->hash[2];
    const uint32_t *bucket = tables->hash + 4 + words * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
    const uint32_t *hashes = bucket + buckets;
    uint32_t hash = hash_of(name), i = bucket[hash % buckets];
    if (i < first)
        return NULL;
    for (;; i++) {
        const ElfW(Sym) *symbol = &tables->symbols[i];
        if ((hashes[i - first] | 1) == (hash | 1) && symbol->st_shndx != SHN_UNDEF &&
            libc_same(tables->strings + symbol->st_name, name))
            return symbol;
        if (hashes[i - first] & 1)
            return NULL;
    }
}

/* Before glibc 2.34 these functions were in a library of their own. */
static bool is_c_library(const struct tables *tables) {
    return libc_same(tables->soname, "libc.so.6") || libc_same(tables->soname, "libdl.so.2");
}

void *libc_function(const char *name) {
    for (const struct link_map *library = _r_debug.r_map; library; library = library->l_next) {
        struct tables tables = {0};
        if (!read_tables(library, &tables) || !is_c_library(&tables))
            continue;
        const ElfW(Sym) *symbol = find_symbol(&tables, name);
        if (symbol != NULL)
            return (void *)(library->l_addr + symbol->st_value);
    }
    return NULL;
}
