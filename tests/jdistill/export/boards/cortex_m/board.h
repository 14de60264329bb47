/* A Cortex-M4F as QEMU's machine mps2-an386 has it, with -icount shift=0: an instruction takes a nanosecond there, and
   SysTick counts every 40 of them. Output goes through semihosting. */
#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define SYSTICK_CONTROL REGISTER(0xE000E010)
#define SYSTICK_RELOAD REGISTER(0xE000E014)
#define SYSTICK_VALUE REGISTER(0xE000E018)
#define COPROCESSORS REGISTER(0xE000ED88)
#define LARGEST 0xFFFFFF
#define INSTRUCTIONS_PER_TICK 40

int main(void);
extern uint32_t stack_top, data_load, data_start, data_end, bss_start, bss_end;

static int semihosting(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void reset_handler(void);
void reset_handler(void)
{
    static uint32_t stopped[2] = {0x20026, 0};
    uint32_t *from = &data_load, *to;
    COPROCESSORS |= 0xFu << 20; /* The floating-point unit. */
    for (to = &data_start; to < &data_end;) {
        *to++ = *from++;
    }
    for (to = &bss_start; to < &bss_end;) {
        *to++ = 0;
    }
    stopped[1] = (uint32_t)main();
    semihosting(0x20, stopped);
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) static const struct {
    const uint32_t *stack;
    void (*reset)(void);
} vectors = {&stack_top, reset_handler};

static void start_clock(void)
{
    SYSTICK_RELOAD = LARGEST;
    SYSTICK_VALUE = 0;
    SYSTICK_CONTROL = 5;
    while (SYSTICK_VALUE == 0) { /* Not loaded yet. */
    }
}

/* Grows until the counter wraps, which an episode does not get to. */
static long read_clock(void)
{
    return (long)(LARGEST - SYSTICK_VALUE) * INSTRUCTIONS_PER_TICK;
}

static void report(const char *name, long value)
{
    char text[24];
    int at = 23;
    text[at--] = 0;
    text[at--] = '\n';
    do {
        text[at--] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    text[at] = ' ';
    semihosting(4, name);
    semihosting(4, &text[at]);
}
