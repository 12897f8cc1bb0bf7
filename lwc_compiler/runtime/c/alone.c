/* One thread and no clock; for targets without an operating system. */

struct LWC(pool) {
    int threads;
};

static double lwc_seconds(void) { return 0; }

static void lwc_run_step(struct LWC(pool) *pool, const lwc_frame *frame, const lwc_step *step) {
    (void)pool;
    step->call(frame, 0, step->tiles, 0);
}
