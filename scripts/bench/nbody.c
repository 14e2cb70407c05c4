/*
 * The double-precision load: five bodies in each other's gravity, STEPS steps of the leapfrog method.
 *
 * Made for the bench by the host's C compiler: static, without a C library, so that it runs in a guest that has none. The exit
 * status is 0 if the energy at the end is close to that at the start, as it is when the arithmetic is right.
 */

#define STEPS 2000000
#define BODIES 5

struct body {
  double position[3], velocity[3], mass;
};

/* Any planets will do: units and places are arbitrary. */
static struct body bodies[BODIES] = {
    {{0, 0, 0}, {0, 0, 0}, 40.0},
    {{5.0, 0.1, 0.2}, {0.1, 2.8, -0.1}, 0.04},
    {{-1.0, 9.0, -0.3}, {-2.1, -0.2, 0.05}, 0.012},
    {{13.0, -14.0, -0.2}, {1.0, 0.95, -0.02}, 0.002},
    {{-16.0, 25.0, -0.4}, {-0.95, -0.6, 0.03}, 0.002},
};

static double energy(void) {
  double sum = 0;
  for (int i = 0; i < BODIES; i++) {
    const struct body *a = &bodies[i];
    for (int k = 0; k < 3; k++) sum += 0.5 * a->mass * a->velocity[k] * a->velocity[k];
    for (int j = i + 1; j < BODIES; j++) {
      double square = 0;
      for (int k = 0; k < 3; k++) {
        double d = a->position[k] - bodies[j].position[k];
        square += d * d;
      }
      sum -= a->mass * bodies[j].mass / __builtin_sqrt(square);
    }
  }
  return sum;
}

static void step(double dt) {
  for (int i = 0; i < BODIES; i++) {
    struct body *a = &bodies[i];
    for (int j = i + 1; j < BODIES; j++) {
      struct body *b = &bodies[j];
      double x = a->position[0] - b->position[0];
      double y = a->position[1] - b->position[1];
      double z = a->position[2] - b->position[2];
      double square = x * x + y * y + z * z;
      double pull = dt / (square * __builtin_sqrt(square));
      a->velocity[0] -= x * b->mass * pull;
      a->velocity[1] -= y * b->mass * pull;
      a->velocity[2] -= z * b->mass * pull;
      b->velocity[0] += x * a->mass * pull;
      b->velocity[1] += y * a->mass * pull;
      b->velocity[2] += z * a->mass * pull;
    }
  }
  for (int i = 0; i < BODIES; i++)
    for (int k = 0; k < 3; k++) bodies[i].position[k] += dt * bodies[i].velocity[k];
}

/* The kernel's stack is not that of a called function. */
__attribute__((force_align_arg_pointer)) void _start(void) {
  double before = energy();
  for (int i = 0; i < STEPS; i++) step(0.001);
  double drift = (energy() - before) / before;
  long status = drift < 0.01 && drift > -0.01 ? 0 : 1;
  /* exit_group */
  __asm__ volatile("syscall" : : "a"(231L), "D"(status) : "rcx", "r11", "memory");
  __builtin_unreachable();
}
