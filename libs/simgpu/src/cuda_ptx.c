/* Finds in PTX text what the simulation needs: entries with their parameters and declared costs,
 * and global variables. The instructions are not looked at. */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_module.h"

struct parser {
    const char *at;
    unsigned line;
    unsigned depth; /* of braces */
    struct module *module;
    struct kernel *kernel; /* whose body this is */
    const char *cost;      /* a declaration before its entry; NULL: none */
    size_t cost_length;
    unsigned cost_line;
    bool versioned;
    char *log;
    size_t log_bytes;
};

/* In the form of the real compiler's messages, so that programs show them the same way. */
__attribute__((format(printf, 3, 4))) static CUresult reject(struct parser *p, unsigned line,
                                                             const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (p->log_bytes)
        snprintf(p->log, p->log_bytes, "ptxas application ptx input, line %u; fatal   : %s\n", line,
                 text);
    return CUDA_ERROR_INVALID_PTX;
}

/* --- words --- */

static bool is_word(char c) {
    return isalnum((unsigned char)c) || c == '_' || c == '$' || c == '.' || c == '%';
}

static CUresult take_cost(struct parser *p, const char *text, size_t length);

/* Past blanks and comments; a comment that declares a cost is kept. */
static CUresult skip(struct parser *p) {
    static const char mark[] = "simgpu:";
    for (;;) {
        if (*p->at == '\n')
            p->line++;
        if (*p->at && isspace((unsigned char)*p->at)) {
            p->at++;
        } else if (p->at[0] == '/' && p->at[1] == '*') {
            for (p->at += 2; *p->at && !(p->at[0] == '*' && p->at[1] == '/'); p->at++)
                p->line += *p->at == '\n';
            if (!*p->at)
                return reject(p, p->line, "a comment does not end");
            p->at += 2;
        } else if (p->at[0] == '/' && p->at[1] == '/') {
            const char *text = p->at + 2;
            size_t length = strcspn(text, "\n");
            p->at = text + length;
            while (length && isspace((unsigned char)*text)) {
                text++;
                length--;
            }
            if (length < sizeof mark - 1 || memcmp(text, mark, sizeof mark - 1) != 0)
                continue;
            CUresult result = take_cost(p, text + sizeof mark - 1, length - (sizeof mark - 1));
            if (result)
                return result;
        } else {
            return CUDA_SUCCESS;
        }
    }
}

/* The next word, or one other character, in `word`; empty at the end. */
static CUresult next(struct parser *p, char word[KERNEL_NAME]) {
    CUresult result = skip(p);
    size_t length = 0;
    while (result == CUDA_SUCCESS && is_word(p->at[length]) && length < KERNEL_NAME - 1)
        length++;
    if (!length && *p->at)
        length = 1;
    memcpy(word, p->at, length);
    word[length] = 0;
    p->at += length;
    return result;
}

/* --- costs --- */

static CUresult apply_cost(struct parser *p, struct kernel *kernel) {
    size_t wrong_at;
    const char *wrong = cost_parse(p->cost, p->cost_length, kernel, &kernel->cost, &wrong_at);
    if (!wrong)
        return CUDA_SUCCESS;
    size_t length = strcspn(p->cost + wrong_at, " \t\r\n");
    if (wrong_at + length > p->cost_length)
        length = p->cost_length - wrong_at;
    return reject(p, p->cost_line, "simgpu: '%.*s' %s", wrong_at ? (int)length : 4,
                  wrong_at ? p->cost + wrong_at : "cost", wrong);
}

static CUresult take_cost(struct parser *p, const char *text, size_t length) {
    if (p->cost || (p->kernel && p->kernel->cost.declared))
        return reject(p, p->line, "simgpu: a second declaration for one kernel");
    p->cost = text;
    p->cost_length = length;
    p->cost_line = p->line;
    if (p->depth == 0) /* of the entry that follows */
        return CUDA_SUCCESS;
    if (!p->kernel)
        return reject(p, p->line, "simgpu: a declaration outside of kernels");
    CUresult result = apply_cost(p, p->kernel);
    p->cost = NULL;
    return result;
}

/* --- declarations --- */

static unsigned size_of_type(const char *type) {
    static const struct {
        const char *name;
        unsigned bytes;
    } types[] = {{".u8", 1},  {".s8", 1},  {".b8", 1},  {".u16", 2},  {".s16", 2}, {".b16", 2},
                 {".f16", 2}, {".u32", 4}, {".s32", 4}, {".b32", 4},  {".f32", 4}, {".u64", 8},
                 {".s64", 8}, {".b64", 8}, {".f64", 8}, {".b128", 16}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(type, types[i].name) == 0)
            return types[i].bytes;
    return 0;
}

struct variable {
    char name[KERNEL_NAME];
    size_t bytes;
    unsigned alignment;
};

/* What follows .param or .global: qualifiers, type, name, [count]. `stop` is what comes after. */
static CUresult take_variable(struct parser *p, struct variable *variable, char stop[KERNEL_NAME]) {
    char word[KERNEL_NAME];
    unsigned size = 0;
    unsigned alignment = 0;
    *variable = (struct variable){0};
    for (;;) {
        CUresult result = next(p, word);
        if (result)
            return result;
        if (strcmp(word, ".align") == 0) {
            result = next(p, word);
            alignment = (unsigned)strtoul(word, NULL, 10);
            if (result || !alignment || alignment > 4096)
                return result ? result : reject(p, p->line, "'%s' is no alignment", word);
        } else if (word[0] == '.') {
            unsigned bytes = size_of_type(word);
            size = bytes ? bytes : size; /* others, such as .ptr, change nothing here */
        } else {
            break;
        }
    }
    if (!size || !is_word(word[0]))
        return reject(p, p->line, "'%s' where a variable was expected", word);
    strcpy(variable->name, word);
    variable->bytes = size;
    variable->alignment = alignment ? alignment : size;
    CUresult result = next(p, stop);
    while (result == CUDA_SUCCESS && strcmp(stop, "[") == 0) {
        result = next(p, word);
        if (result)
            return result;
        size_t count = strtoull(word, NULL, 0);
        if (!count)
            return reject(p, p->line, "'%s' is no number of elements", word);
        variable->bytes *= count;
        result = next(p, word);
        if (result == CUDA_SUCCESS && strcmp(word, "]") != 0)
            return reject(p, p->line, "'%s' where ']' was expected", word);
        result = result ? result : next(p, stop);
    }
    return result;
}

static CUresult take_params(struct parser *p, struct kernel *kernel) {
    char word[KERNEL_NAME];
    CUresult result = next(p, word);
    while (result == CUDA_SUCCESS && strcmp(word, ")") != 0) {
        struct variable param;
        if (strcmp(word, ".param") != 0)
            return reject(p, p->line, "'%s' where .param was expected", word);
        if (kernel->param_count == KERNEL_PARAMS)
            return reject(p, p->line, "more than %d parameters", KERNEL_PARAMS);
        result = take_variable(p, &param, word);
        if (result)
            return result;
        unsigned offset =
            (kernel->params_bytes + param.alignment - 1) / param.alignment * param.alignment;
        kernel->param_offset[kernel->param_count] = offset;
        kernel->param_size[kernel->param_count++] = (unsigned)param.bytes;
        kernel->params_bytes = offset + (unsigned)param.bytes;
        if (kernel->params_bytes > 4096)
            return reject(p, p->line, "more than 4096 bytes of parameters");
        if (strcmp(word, ",") == 0)
            result = next(p, word);
        else if (strcmp(word, ")") != 0)
            return reject(p, p->line, "'%s' in a list of parameters", word);
    }
    return result;
}

static CUresult take_entry(struct parser *p) {
    char word[KERNEL_NAME];
    CUresult result = next(p, word);
    if (result)
        return result;
    if (!is_word(word[0]) || word[0] == '.')
        return reject(p, p->line, "'%s' where the name of an entry was expected", word);
    struct kernel *kernel = object_new(OBJECT_KERNEL);
    if (!kernel)
        return CUDA_ERROR_OUT_OF_MEMORY;
    strcpy(kernel->name, word);
    kernel->module = p->module;
    kernel->max_dynamic_shared = 48 * 1024;
    kernel->carveout = -1;
    struct kernel **last = &p->module->kernels;
    while (*last)
        last = &(*last)->next;
    *last = kernel;
    p->module->kernel_count++;
    p->kernel = kernel;
    const char *before = p->at;
    unsigned line = p->line;
    result = next(p, word);
    if (result == CUDA_SUCCESS && strcmp(word, "(") == 0) {
        result = take_params(p, kernel);
    } else if (result == CUDA_SUCCESS) {
        p->at = before;
        p->line = line;
    }
    if (result == CUDA_SUCCESS && p->cost) {
        result = apply_cost(p, kernel);
        p->cost = NULL;
    }
    return result;
}

static CUresult take_global(struct parser *p) {
    struct variable variable;
    char stop[KERNEL_NAME];
    CUresult result = take_variable(p, &variable, stop);
    if (result)
        return result;
    struct global *global = calloc(1, sizeof *global);
    if (!global)
        return CUDA_ERROR_OUT_OF_MEMORY;
    strcpy(global->name, variable.name);
    global->bytes = variable.bytes;
    global->next = p->module->globals;
    p->module->globals = global;
    /* An initial value may have braces of its own. */
    while (result == CUDA_SUCCESS && strcmp(stop, ";") != 0 && *stop)
        result = next(p, stop);
    return result;
}

static CUresult take_brace(struct parser *p, bool opens) {
    if (opens) {
        p->depth++;
        return CUDA_SUCCESS;
    }
    if (!p->depth)
        return reject(p, p->line, "'}' without '{'");
    if (--p->depth == 0)
        p->kernel = NULL;
    return CUDA_SUCCESS;
}

CUresult ptx_parse(const char *text, struct module *module, char *log, size_t log_bytes) {
    struct parser p = {.at = text, .line = 1, .module = module, .log = log, .log_bytes = log_bytes};
    char word[KERNEL_NAME];
    for (;;) {
        CUresult result = next(&p, word);
        if (result)
            return result;
        if (!*word)
            break;
        if (strcmp(word, "{") == 0 || strcmp(word, "}") == 0)
            result = take_brace(&p, *word == '{');
        else if (p.depth)
            continue;
        else if (strcmp(word, ".version") == 0)
            p.versioned = true;
        else if (!p.versioned)
            result = reject(&p, p.line, "'%s' before .version", word);
        else if (strcmp(word, ".entry") == 0)
            result = take_entry(&p);
        else if (strcmp(word, ".global") == 0 || strcmp(word, ".const") == 0)
            result = take_global(&p);
        else if (strcmp(word, ";") == 0)
            p.kernel = NULL; /* an entry that was declared only */
        if (result)
            return result;
    }
    if (!p.versioned)
        return reject(&p, p.line, "no .version");
    if (p.depth)
        return reject(&p, p.line, "'{' without '}'");
    if (p.cost)
        return reject(&p, p.cost_line, "simgpu: a declaration that no kernel follows");
    return CUDA_SUCCESS;
}
