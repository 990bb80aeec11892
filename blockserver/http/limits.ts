/**
 * What HTTP clients may ask of the server.
 */

/** Connections at one time; more are closed at once. */
export const HTTP_CONNECTIONS_MAX = 256
/** Body of one request, bytes; a route that needs more says so. */
export const HTTP_BODY_BYTES_MAX = 64 * 1024
/** Headers of one request, bytes. */
export const HTTP_HEADER_BYTES_MAX = 16 * 1024
/** Until all of a request has arrived. */
export const HTTP_REQUEST_MS_MAX = 10_000
/** Until a request is answered, otherwise by 503. */
export const HTTP_ANSWER_MS_MAX = 30_000
/** Until a file of the recovery medium, some 60 MiB, has gone over a thin line; a line on which nothing moves is ended before. */
export const HTTP_BOOT_FILE_MS_MAX = 3_600_000
/** Until an image of a disk has gone over a line. */
export const HTTP_IMAGE_MS_MAX = 24 * 3_600_000
/** Between two requests of a connection. */
export const HTTP_IDLE_MS_MAX = 30_000
/** A connection on which nothing moves while it is answered. */
export const HTTP_SILENCE_MS_MAX = 60_000
/** For answers that are under way when the server ends. */
export const HTTP_CLOSE_MS_MAX = 5000
