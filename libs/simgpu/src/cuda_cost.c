/* The little language in which a kernel declares what it costs: see "Kernels" in the README.
 *
 *   // simgpu: duration_ns=param0 sm_pct=grid bandwidth_pct=10
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_module.h"

struct reader {
    const char *at, *end;
};

static bool take_word(struct reader *reader, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, word, length) != 0)
        return false;
    reader->at += length;
    return true;
}

static bool take_number(struct reader *reader, double *number) {
    char text[40];
    size_t length = 0;
    bool point = false;
    while (reader->at + length < reader->end && length < sizeof text - 1) {
        char c = reader->at[length];
        if (!isdigit((unsigned char)c) && (c != '.' || point))
            break;
        point = point || c == '.';
        text[length++] = c;
    }
    if (!length || text[0] == '.')
        return false;
    text[length] = 0;
    *number = strtod(text, NULL);
    reader->at += length;
    return true;
}

static bool take_param(struct reader *reader, unsigned *param) {
    double number;
    struct reader ahead = *reader;
    if (!take_word(&ahead, "param") || ahead.at == ahead.end ||
        !isdigit((unsigned char)*ahead.at) || !take_number(&ahead, &number))
        return false;
    if (number != (unsigned)number)
        return false;
    *param = (unsigned)number;
    *reader = ahead;
    return true;
}

/* number | param | param*number | number*param */
static bool take_amount(struct reader *reader, struct amount *amount) {
    *amount = (struct amount){.kind = AMOUNT_CONSTANT, .factor = 1};
    double number;
    if (take_param(reader, &amount->param)) {
        amount->kind = AMOUNT_PARAM;
        return !take_word(reader, "*") || take_number(reader, &amount->factor);
    }
    if (!take_number(reader, &number))
        return false;
    amount->factor = number;
    if (!take_word(reader, "*"))
        return true;
    amount->kind = AMOUNT_PARAM;
    return take_param(reader, &amount->param);
}

static bool at_end_of_item(const struct reader *reader) {
    return reader->at == reader->end || isspace((unsigned char)*reader->at);
}

static const char *check_param(const struct kernel *kernel, const struct amount *amount) {
    if (amount->kind != AMOUNT_PARAM)
        return NULL;
    if (amount->param >= kernel->param_count)
        return "names a parameter that the kernel does not have";
    unsigned size = kernel->param_size[amount->param];
    return size == 4 || size == 8 ? NULL : "names a parameter that is no 32- or 64-bit number";
}

static const char *check_pct(const struct amount *amount, bool zero) {
    if (amount->kind != AMOUNT_CONSTANT)
        return NULL;
    if (amount->factor > 100 || (!zero && amount->factor <= 0))
        return "is no percentage";
    return NULL;
}

static const char *read_amount(struct reader *reader, const struct kernel *kernel,
                               struct amount *amount) {
    if (amount->kind != AMOUNT_NONE)
        return "is given twice";
    if (!take_amount(reader, amount) || !at_end_of_item(reader))
        return "is neither a number nor a parameter";
    return check_param(kernel, amount);
}

static const char *read_address(struct reader *reader, const struct kernel *kernel,
                                struct amount *amount) {
    const char *wrong = read_amount(reader, kernel, amount);
    if (wrong)
        return wrong;
    bool plain = amount->kind == AMOUNT_PARAM && amount->factor == 1;
    return plain && kernel->param_size[amount->param] == 8
               ? NULL
               : "is no parameter that holds an address";
}

static const char *read_sm_pct(struct reader *reader, const struct kernel *kernel,
                               struct amount *amount) {
    if (amount->kind == AMOUNT_NONE && take_word(reader, "grid")) {
        amount->kind = AMOUNT_GRID;
        return at_end_of_item(reader) ? NULL : "is neither a number nor a parameter nor grid";
    }
    const char *wrong = read_amount(reader, kernel, amount);
    return wrong ? wrong : check_pct(amount, false);
}

static const char *read_fault(struct reader *reader, uint32_t *xid) {
    if (*xid)
        return "is given twice";
    if (take_word(reader, "illegal_address"))
        *xid = 31;
    else if (take_word(reader, "illegal_instruction"))
        *xid = 13;
    else if (take_word(reader, "hang"))
        *xid = 43;
    return *xid && at_end_of_item(reader)
               ? NULL
               : "is neither illegal_address nor illegal_instruction nor hang";
}

static const char *read_item(struct reader *reader, const struct kernel *kernel,
                             struct cost *cost) {
    if (take_word(reader, "duration_ns="))
        return read_amount(reader, kernel, &cost->duration_ns);
    if (take_word(reader, "bytes="))
        return read_amount(reader, kernel, &cost->bytes);
    if (take_word(reader, "sm_pct="))
        return read_sm_pct(reader, kernel, &cost->sm_pct);
    if (take_word(reader, "bandwidth_pct=")) {
        const char *wrong = read_amount(reader, kernel, &cost->bandwidth_pct);
        return wrong ? wrong : check_pct(&cost->bandwidth_pct, true);
    }
    if (take_word(reader, "wait_word="))
        return read_address(reader, kernel, &cost->wait_word);
    if (take_word(reader, "count_word="))
        return read_address(reader, kernel, &cost->count_word);
    if (take_word(reader, "fault="))
        return read_fault(reader, &cost->xid);
    return "is unknown";
}

const char *cost_parse(const char *text, size_t length, const struct kernel *kernel,
                       struct cost *cost, size_t *wrong_at) {
    struct reader reader = {text, text + length};
    cost->declared = true;
    for (;;) {
        while (reader.at < reader.end && isspace((unsigned char)*reader.at))
            reader.at++;
        *wrong_at = (size_t)(reader.at - text);
        if (reader.at == reader.end)
            break;
        const char *wrong = read_item(&reader, kernel, cost);
        if (wrong)
            return wrong;
    }
    *wrong_at = 0;
    bool duration = cost->duration_ns.kind != AMOUNT_NONE;
    bool bytes = cost->bytes.kind != AMOUNT_NONE;
    bool waits = cost->wait_word.kind != AMOUNT_NONE;
    if (duration + bytes + waits != 1)
        return "needs one of duration_ns, bytes and wait_word";
    if (bytes && (cost->bandwidth_pct.kind == AMOUNT_NONE ||
                  (cost->bandwidth_pct.kind == AMOUNT_CONSTANT && cost->bandwidth_pct.factor == 0)))
        return "gives bytes without the bandwidth_pct at which they are moved";
    return NULL;
}
