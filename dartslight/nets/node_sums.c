/* The passes over pictures behind node_sums.py, for pictures in memory with channels last, (pixels, channels).

   A row is `repeat` pixels; numbers for each channel are repeated as often, so that inner loops are long enough for
   the processor's vectors. Sums are taken in REAL over a block of rows and in double over all blocks; each thread has
   its own, which are added in the order of the threads, so that the same number of threads gives the same bits. */

#ifndef REAL

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 32 /* rows of which sums are taken in REAL; g stays in the cache while all terms are multiplied with it */
#define LONG_BLOCK 128 /* rows that are written for a term before the next: so many are fetched ahead */
#define LEAST 16384 /* numbers from which on several threads are worth waking */

typedef long count;

static count repeats(count pixels) { return pixels % 8 == 0 ? 8 : 1; }

static int threads_for(count numbers) { return numbers < LEAST ? 1 : omp_get_max_threads(); }

static count least(count a, count b) { return a < b ? a : b; }

/* The rows of this thread. */
static void own_rows(count rows, count *begin, count *end)
{
    count blocks = (rows + BLOCK - 1) / BLOCK, n = omp_get_num_threads(), i = omp_get_thread_num();
    *begin = least(rows, blocks * i / n * BLOCK);
    *end = least(rows, blocks * (i + 1) / n * BLOCK);
}

#define REAL float
#define NAMED(name) name##_float
#include "node_sums.c"
#undef REAL
#undef NAMED
#define REAL double
#define NAMED(name) name##_double
#include "node_sums.c"

#else

static REAL *NAMED(tiled)(const REAL *per_channel, count terms, count channels, count repeat)
{
    REAL *out = malloc(sizeof(REAL) * (terms * channels * repeat + 1));
    for (count t = 0; t < terms; t++)
        for (count r = 0; r < repeat; r++)
            memcpy(out + (t * repeat + r) * channels, per_channel + t * channels, sizeof(REAL) * channels);
    return out;
}

/* Adds what all threads and all pixels of a row have found for a channel: found is (threads, series, width). */
static double NAMED(joined)(const double *found, int threads, count series, count s, count c, count channels, count width)
{
    double sum = 0;
    for (int t = 0; t < threads; t++)
        for (count w = c; w < width; w += channels) sum += found[(t * series + s) * width + w];
    return sum;
}

/* mean, variance and 1 / sqrt(variance + eps) of every term and channel, (terms, channels) each */
void NAMED(moments)(count terms, count pixels, count channels, double eps, const REAL *const *xs, REAL *mean,
                    REAL *variance, REAL *inverse)
{
    const count repeat = repeats(pixels), width = repeat * channels, rows = pixels / repeat;
    const int threads = threads_for(terms * pixels * channels);
    double *found = calloc((size_t)threads * 2 * terms * width, sizeof(double));
#pragma omp parallel num_threads(threads)
    {
        count begin, end;
        own_rows(rows, &begin, &end);
        REAL *first = malloc(sizeof(REAL) * 2 * width), *second = first + width;
        for (count t = 0; t < terms; t++) {
            const REAL *base = xs[t]; /* differences from the first pixel of all: what cancels stays small */
            REAL *shift = malloc(sizeof(REAL) * width);
            for (count w = 0; w < width; w++) shift[w] = base[w % channels];
            double *sums = found + ((size_t)omp_get_thread_num() * 2 * terms + 2 * t) * width, *squares = sums + width;
            for (count r = begin; r < end; r += BLOCK) {
                memset(first, 0, sizeof(REAL) * 2 * width);
                for (count i = r; i < least(r + BLOCK, end); i++) {
                    const REAL *x = base + i * width;
                    for (count w = 0; w < width; w++) {
                        REAL d = x[w] - shift[w];
                        first[w] += d;
                        second[w] += d * d;
                    }
                }
                for (count w = 0; w < width; w++) sums[w] += first[w], squares[w] += second[w];
            }
            free(shift);
        }
        free(first);
    }
    for (count t = 0; t < terms; t++)
        for (count c = 0; c < channels; c++) {
            double d = NAMED(joined)(found, threads, 2 * terms, 2 * t, c, channels, width) / pixels;
            double s = NAMED(joined)(found, threads, 2 * terms, 2 * t + 1, c, channels, width) / pixels;
            mean[t * channels + c] = (REAL)(xs[t][c] + d);
            double v = s > d * d ? s - d * d : 0;
            variance[t * channels + c] = (REAL)v;
            inverse[t * channels + c] = (REAL)(1 / sqrt(v + eps));
        }
    free(found);
}

/* out = sum over terms of scale * (x - mean) * inverse + shift for the first terms, which have a normalisation, and of
   scale * x for the others; without a scale it is 1, without a shift 0. slopes are the factors of x, (terms, channels). */
void NAMED(weighted)(count terms, count normalised, count pixels, count channels, const REAL *const *xs,
                     const REAL *const *scales, const REAL *const *shifts, const REAL *mean, const REAL *inverse,
                     REAL *slopes, REAL *out)
{
    const count repeat = repeats(pixels), width = repeat * channels, rows = pixels / repeat;
    REAL *offset = calloc(channels, sizeof(REAL));
    for (count t = 0; t < terms; t++)
        for (count c = 0; c < channels; c++) {
            const count k = t * channels + c;
            slopes[k] = (scales[t] ? scales[t][c] : 1) * (t < normalised ? inverse[k] : 1);
            if (t < normalised) offset[c] -= slopes[k] * mean[k];
            if (shifts[t]) offset[c] += shifts[t][c];
        }
    REAL *slope = NAMED(tiled)(slopes, terms, channels, repeat), *start = NAMED(tiled)(offset, 1, channels, repeat);
#pragma omp parallel num_threads(threads_for(terms * pixels * channels))
    {
        count begin, end;
        own_rows(rows, &begin, &end);
        for (count i = begin; i < end; i++) {
            REAL *y = out + i * width;
            const REAL *x = xs[0] + i * width;
            for (count w = 0; w < width; w++) y[w] = start[w] + slope[w] * x[w];
            for (count t = 1; t < terms; t++) {
                const REAL *z = xs[t] + i * width, *a = slope + t * width;
                for (count w = 0; w < width; w++) y[w] += a[w] * z[w];
            }
        }
    }
    free(offset);
    free(slope);
    free(start);
}

/* Of every term with an x the sum over pixels of g * (x - mean), (terms, channels), and that of g, (channels); terms
   without a normalisation have no mean. */
static void NAMED(products)(count terms, count normalised, count pixels, count channels, const REAL *const *xs,
                            const REAL *means, const REAL *g, REAL *by_x, REAL *by_1)
{
    const count repeat = repeats(pixels), width = repeat * channels, rows = pixels / repeat;
    const int threads = threads_for(terms * pixels * channels);
    double *found = calloc((size_t)threads * (terms + 1) * width, sizeof(double));
    REAL *mean = NAMED(tiled)(means, normalised, channels, repeat), *zero = calloc(width, sizeof(REAL));
#pragma omp parallel num_threads(threads)
    {
        count begin, end;
        own_rows(rows, &begin, &end);
        double *own = found + (size_t)omp_get_thread_num() * (terms + 1) * width;
        REAL *some = malloc(sizeof(REAL) * width);
        for (count r = begin; r < end; r += BLOCK)
            for (count t = 0; t <= terms; t++) {
                if (t < terms && !xs[t]) continue;
                const REAL *m = t < normalised ? mean + t * width : zero;
                memset(some, 0, sizeof(REAL) * width);
                for (count i = r; i < least(r + BLOCK, end); i++) {
                    const REAL *h = g + i * width;
                    if (t == terms) {
                        for (count w = 0; w < width; w++) some[w] += h[w];
                    } else {
                        const REAL *x = xs[t] + i * width;
                        for (count w = 0; w < width; w++) some[w] += h[w] * (x[w] - m[w]);
                    }
                }
                for (count w = 0; w < width; w++) own[t * width + w] += some[w];
            }
        free(some);
    }
    for (count t = 0; t <= terms; t++)
        for (count c = 0; c < channels; c++) {
            double sum = NAMED(joined)(found, threads, terms + 1, t, c, channels, width);
            if (t == terms) by_1[c] = (REAL)sum;
            else by_x[t * channels + c] = (REAL)sum;
        }
    free(found);
    free(mean);
    free(zero);
}

/* The derivatives of weighted by every x that has an out, by every scale, (terms, channels), and by a shift, (channels),
   where g is that of what follows by its out. Terms without a normalisation may have no x; their by_scale is then 0.
   Where no term has an x there need be no by_scale and by_shift. */
void NAMED(derivatives)(count terms, count normalised, count pixels, count channels, const REAL *const *xs,
                        const REAL *mean, const REAL *inverse, const REAL *slopes, const REAL *g, REAL *const *outs,
                        REAL *by_scale, REAL *by_shift)
{
    const count repeat = repeats(pixels), width = repeat * channels, rows = pixels / repeat;
    if (by_scale) NAMED(products)(terms, normalised, pixels, channels, xs, mean, g, by_scale, by_shift);
    /* slope * (g - mean of g - normalised x * mean of g * normalised x) is constant + factor * x + slope * g */
    REAL *constants = malloc(sizeof(REAL) * (2 * normalised * channels + 1)), *factors = constants + normalised * channels;
    for (count k = 0; k < normalised * channels; k++) {
        by_scale[k] *= inverse[k];
        factors[k] = -slopes[k] / pixels * inverse[k] * by_scale[k];
        constants[k] = -slopes[k] / pixels * by_shift[k % channels] - factors[k] * mean[k];
    }
    REAL *constant = NAMED(tiled)(constants, normalised, channels, repeat);
    REAL *factor = NAMED(tiled)(factors, normalised, channels, repeat);
    REAL *slope = NAMED(tiled)(slopes, terms, channels, repeat);
#pragma omp parallel num_threads(threads_for(terms * pixels * channels))
    {
        count begin, end;
        own_rows(rows, &begin, &end);
        for (count r = begin; r < end; r += LONG_BLOCK)
            for (count t = 0; t < terms; t++) {
                if (!outs[t]) continue;
                const REAL *s = slope + t * width;
                for (count i = r; i < least(r + LONG_BLOCK, end); i++) {
                    const REAL *h = g + i * width;
                    REAL *restrict y = outs[t] + i * width;
                    if (t < normalised) {
                        const REAL *a = constant + t * width, *b = factor + t * width, *x = xs[t] + i * width;
                        for (count w = 0; w < width; w++) y[w] = a[w] + b[w] * x[w] + s[w] * h[w];
                    } else
                        for (count w = 0; w < width; w++) y[w] = s[w] * h[w];
                }
            }
    }
    free(constants);
    free(constant);
    free(factor);
    free(slope);
}

static REAL NAMED(share)(count i, count size) { return (REAL)1 / ((i > 0) + 1 + (i < size - 1)); }

/* The means of windows of 3x3 pixels, which get smaller at the border; or, backward, the derivative of that by x. */
void NAMED(averages)(count batch, count height, count width, count channels, int backward, const REAL *x, REAL *out)
{
    const count line = width * channels;
#pragma omp parallel num_threads(threads_for(batch * height * line))
    {
        REAL *sums = calloc(line + 2 * channels, sizeof(REAL)), *middle = sums + channels; /* zeros on both sides */
        REAL *across = malloc(sizeof(REAL) * line);
        for (count k = 0; k < line; k++) across[k] = NAMED(share)(k / channels, width);
#pragma omp for
        for (count i = 0; i < batch * height; i++) {
            const count y = i % height;
            memset(middle, 0, sizeof(REAL) * line);
            for (count d = -(y > 0); d <= (y < height - 1); d++) {
                const REAL *z = x + (i + d) * line, s = NAMED(share)(backward ? y + d : y, height);
                for (count k = 0; k < line; k++) middle[k] += s * z[k];
            }
            REAL *o = out + i * line;
            if (backward)
                for (count k = 0; k < line; k++) middle[k] *= across[k];
            for (count k = 0; k < line; k++) o[k] = sums[k] + middle[k] + middle[k + channels];
            if (!backward)
                for (count k = 0; k < line; k++) o[k] *= across[k];
        }
        free(sums);
        free(across);
    }
}

#endif
