/* Lines by the hundred in a moment, into the file that XCUDA_LOG names. */
#include "log.h"

int main(void) {
    for (int i = 0; i < 300; i++)
        log_line("line %d", i);
    return 0;
}
