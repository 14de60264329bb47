/* Flies the controller for many craft, one after the other: each has a copy of what the controller remembers. */
#include "controller.c"

static int resets, pid_steps;
static float pid_height;

void controllerPidInit(void) { resets = pid_steps = 0; }
bool controllerPidTest(void) { return true; }
void positionControllerResetAllPID(float x, float y, float z) { (void)x, (void)y, pid_height = z, resets++; }
void positionControllerResetAllfilters(void) {}
void attitudeControllerResetAllPID(float roll, float pitch, float yaw) { (void)roll, (void)pitch, (void)yaw; }
void vTaskDelay(uint32_t ticks) { (void)ticks; }

/* In place of the PID controller: thrust that carries the craft, and NaN where it gets an estimate that is NaN. */
void controllerPid(control_t *control, const setpoint_t *setpoint, const sensorData_t *sensors, const state_t *state,
                   const stabilizerStep_t stabilizerStep)
{
    (void)setpoint, (void)stabilizerStep;
    control->controlMode = controlModeLegacy;
    control->thrust = SIL_HOVER_THRUST / THRUST_MAX * 65535.0f + 0.0f * (state->position.z + sensors->gyro.x);
    pid_steps++;
}

int sil_size(void) { return (int)sizeof app; }
int sil_pid_resets(void) { return resets; }
int sil_pid_steps(void) { return pid_steps; }
void sil_limits(float distance, float tilt, float speed, float rate)
{
    max_distance = distance, max_tilt = tilt, max_speed = speed, max_rate = rate;
}
void sil_enable(int on) { enable = (uint8_t)on; }

void sil_begin(int craft, char *memory)
{
    controllerOutOfTreeInit();
    for (int i = 0; i < craft; i++) {
        memcpy(memory + i * (int)sizeof app, &app, sizeof app);
    }
}

/* A control step of 1000 / POLICY_RATE_HZ calls. A row of ``seen`` is position, velocity, quaternion (xyzw), rates in
 * deg/s, the setpoint's position and velocity, and its mode; of ``thrust`` the motors' thrusts in N, as the firmware
 * rounds them, or a NaN where they changed between the calls. */
void sil_step(int craft, char *memory, const float *seen, int step, float *thrust, unsigned char *fallback)
{
    for (int i = 0; i < craft; i++, seen += 20, thrust += 4) {
        const stab_mode_t mode = (stab_mode_t)seen[19];
        const state_t state = {{0.0f, 0.0f, 0.0f}, {seen[6], seen[7], seen[8], seen[9]}, {seen[0], seen[1], seen[2]},
                               {seen[3], seen[4], seen[5]}};
        const sensorData_t sensors = {{seen[10], seen[11], seen[12]}};
        const setpoint_t setpoint = {{seen[13], seen[14], seen[15]}, {seen[16], seen[17], seen[18]}, false,
                                     {mode, mode, mode}};
        control_t control, first;
        memset(&control, 0, sizeof control);
        memcpy(&app, memory + i * (int)sizeof app, sizeof app);
        for (int tick = 0; tick < DIVIDER; tick++) {
            controllerOutOfTree(&control, &setpoint, &sensors, &state, (stabilizerStep_t)(step * DIVIDER + tick));
            first = tick ? first : control;
        }
        memcpy(memory + i * (int)sizeof app, &app, sizeof app);
        fallback[i] = app.fallback;
        for (int m = 0; m < 4; m++) {
            const float share = control.controlMode == controlModeForce ? control.normalizedForces[m] * 65535.0f : control.thrust;
            const bool is_held = memcmp(&first, &control, sizeof first) == 0 && share >= 0.0f && share <= 65535.0f;
            thrust[m] = is_held ? (float)(uint16_t)share / 65535.0f * THRUST_MAX : NAN;
        }
    }
}
