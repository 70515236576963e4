/* Who sees a symbol of the library. The default of its build is hidden; a declaration of a variable
 * says so once more, for the compiler does not know that of what is defined elsewhere. */
#ifndef XCUDA_VISIBILITY_H
#define XCUDA_VISIBILITY_H

#define EXPORT __attribute__((visibility("default")))
#define HIDDEN __attribute__((visibility("hidden")))

#endif
