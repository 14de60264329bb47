/* Runs an exported policy along golden.h and tells how far its actions are from those there. */
#include "golden.h"
#include "policy.h"
#include "board.h"

int main(void)
{
    policy_state state;
    float action[POLICY_NUM_ACTIONS], worst = 0.0f;
    long spent = 0;
    int step, i;
    start_clock();
    for (step = 0; step < STEPS; step++) {
        long before;
        if (step % EPISODE == 0) {
            policy_reset(&state);
        }
        before = read_clock();
        policy_step(&state, observations[step], action);
        spent += read_clock() - before;
        for (i = 0; i < POLICY_NUM_ACTIONS; i++) {
            const float difference = action[i] - actions[step][i];
            const float size = difference < 0.0f ? -difference : difference;
            worst = size <= worst ? worst : size;
        }
    }
    report("difference_1e9", (long)(worst * 1e9f));
    report("instructions", spent / STEPS);
    return 0;
}
