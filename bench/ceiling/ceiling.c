/*
 * The loopback ceiling: the least an iSCSI target can do for a READ or a WRITE, which is to parse the PDU and to pread or
 * pwrite one file. One blocking thread a connection, a buffered receive, one send a response, nothing clever.
 *
 * A YARDSTICK ONLY. It trusts its peer, checks no bounds beyond what its own memory needs, has no error recovery, no
 * authentication, no digests, and loses data as soon as the file does. Never serve anything with it.
 *
 * Usage: ceiling FILE [PORT]        serves FILE as LUN 1 of iqn.2026-01.bench:ceiling on 127.0.0.1; prints its port.
 * Clauses named below are of RFC 7143 (iSCSI), SPC-4 and SBC-3.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BHS_BYTES = 48,
    BLOCK_BYTES = 512,
    SEGMENT_BYTES = 262144,       /* MaxRecvDataSegmentLength, FirstBurstLength and MaxBurstLength, all the same */
    RECEIVE_BYTES = 1024 * 1024,  /* holds several small PDUs, or one of the largest and the start of the next */
    TASKS = 1024,                 /* writes that wait for data; a slot is the low bits of its initiator task tag */
    WINDOW_COMMANDS = 256,        /* MaxCmdSN - ExpCmdSN + 1 */
};

/* A write whose data did not all come with its command. */
struct pending {
    uint64_t offset_bytes;   /* of the command, in the file */
    uint32_t wanted_bytes;   /* expected data transfer length */
    uint32_t arrived_bytes;
    uint32_t burst_end;      /* where the burst under way ends: unsolicited data first, then one R2T after another */
    uint32_t r2t_count;
};

struct connection {
    int socket;
    uint32_t stat_sn, exp_cmd_sn;
    size_t received;         /* bytes in in[] */
    uint8_t in[RECEIVE_BYTES];
    uint8_t out[BHS_BYTES + SEGMENT_BYTES];
    struct pending pending[TASKS];
};

static int file;
static uint64_t size_blocks;

static uint32_t get24(const uint8_t *p) { return (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2]; }
static uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return be32toh(v); }
static uint64_t get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return be64toh(v); }
static void put32(uint8_t *p, uint32_t v) { v = htobe32(v); memcpy(p, &v, 4); }
static void put64(uint8_t *p, uint64_t v) { v = htobe64(v); memcpy(p, &v, 8); }
static void put24(uint8_t *p, uint32_t v) { p[0] = v >> 16; p[1] = v >> 8; p[2] = v; }

/* Ends this connection's thread; the file and the other connections are not touched. */
static _Noreturn void hang_up(struct connection *c)
{
    close(c->socket);
    free(c);
    pthread_exit(NULL);
}

static void send_all(struct connection *c, size_t length)
{
    size_t sent = 0;
    while (sent < length) {
        ssize_t n = send(c->socket, c->out + sent, length - sent, MSG_NOSIGNAL);
        if (n <= 0)
            hang_up(c);
        sent += (size_t)n;
    }
}

/* Starts a response in out[]: opcode, flags, the request's task tag, and the sequence numbers (11.4). */
static uint8_t *begin(struct connection *c, const uint8_t *request, uint8_t opcode, uint8_t flags)
{
    memset(c->out, 0, BHS_BYTES);
    c->out[0] = opcode;
    c->out[1] = flags;
    memcpy(c->out + 16, request + 16, 4);
    put32(c->out + 24, c->stat_sn);
    put32(c->out + 28, c->exp_cmd_sn);
    put32(c->out + 32, c->exp_cmd_sn + WINDOW_COMMANDS - 1);
    return c->out;
}

/* Sends out[] with `length` bytes of data segment already in place after the header. */
static void finish(struct connection *c, uint32_t length)
{
    put24(c->out + 5, length);
    memset(c->out + BHS_BYTES + length, 0, -length & 3);
    send_all(c, BHS_BYTES + length + (-length & 3));
}

/* SCSI Response with GOOD (11.4). */
static void good(struct connection *c, const uint8_t *request)
{
    begin(c, request, 0x21, 0x80);
    c->stat_sn++;
    finish(c, 0);
}

/* SCSI Response with CHECK CONDITION and fixed-format sense (SPC-4 4.5.3). */
static void check_condition(struct connection *c, const uint8_t *request, uint8_t key, uint8_t asc)
{
    uint8_t *out = begin(c, request, 0x21, 0x80), *sense = out + BHS_BYTES;
    out[3] = 0x02;
    c->stat_sn++;
    memset(sense, 0, 20);
    sense[1] = 18;
    sense[2] = 0x70;
    sense[2 + 2] = key;
    sense[2 + 7] = 10;
    sense[2 + 12] = asc;
    finish(c, 20);
}

/* Small data-in of `length` bytes, cut to what the host asked for, with status in the same PDU (11.7.3). */
static void answer(struct connection *c, const uint8_t *request, const uint8_t *data, uint32_t length)
{
    uint32_t wanted = get32(request + 20), sent = length < wanted ? length : wanted;
    uint8_t *out = begin(c, request, 0x25, 0x81);
    c->stat_sn++;
    put32(out + 20, 0xffffffff);
    if (sent < wanted) {
        out[1] |= 0x02;
        put32(out + 44, wanted - sent);
    }
    memcpy(out + BHS_BYTES, data, sent);
    finish(c, sent);
}

static void read_blocks(struct connection *c, const uint8_t *request, uint64_t lba, uint32_t count)
{
    uint32_t total = count * BLOCK_BYTES, done = 0, data_sn = 0;
    if (total == 0) {
        good(c, request);
        return;
    }
    while (done < total) {
        uint32_t piece = total - done < SEGMENT_BYTES ? total - done : SEGMENT_BYTES;
        int last = done + piece == total;
        uint8_t *out = begin(c, request, 0x25, last ? 0x81 : 0);
        if (pread(file, out + BHS_BYTES, piece, (off_t)(lba * BLOCK_BYTES + done)) != (ssize_t)piece) {
            check_condition(c, request, 0x03, 0x11);
            return;
        }
        put32(out + 20, 0xffffffff);
        put32(out + 36, data_sn++);
        put32(out + 40, done);
        if (last)
            c->stat_sn++;
        finish(c, piece);
        done += piece;
    }
}

/* Takes `length` bytes that arrived for a write; answers when all are there, or asks for the next burst (11.8). */
static void write_arrived(struct connection *c, const uint8_t *request, const uint8_t *data, uint32_t length)
{
    uint32_t slot = get32(request + 16) % TASKS;
    struct pending *w = &c->pending[slot];
    if (length > w->wanted_bytes - w->arrived_bytes)
        hang_up(c);
    if (length && pwrite(file, data, length, (off_t)(w->offset_bytes + w->arrived_bytes)) != (ssize_t)length) {
        check_condition(c, request, 0x03, 0x0c);
        return;
    }
    w->arrived_bytes += length;
    if (w->arrived_bytes == w->wanted_bytes) {
        good(c, request);
    } else if (w->arrived_bytes >= w->burst_end) {
        uint32_t left = w->wanted_bytes - w->arrived_bytes, ask = left < SEGMENT_BYTES ? left : SEGMENT_BYTES;
        uint8_t *out = begin(c, request, 0x31, 0x80);
        memcpy(out + 8, request + 8, 8);
        put32(out + 20, slot);
        put32(out + 36, w->r2t_count++);
        put32(out + 40, w->arrived_bytes);
        put32(out + 44, ask);
        w->burst_end = w->arrived_bytes + ask;
        finish(c, 0);
    }
}

static void write_blocks(struct connection *c, const uint8_t *request, uint64_t lba, uint32_t count,
                         const uint8_t *data, uint32_t length)
{
    struct pending *w = &c->pending[get32(request + 16) % TASKS];
    w->offset_bytes = lba * BLOCK_BYTES;
    w->wanted_bytes = count * BLOCK_BYTES;
    w->arrived_bytes = 0;
    w->r2t_count = 0;
    /* F set: no unsolicited Data-Out follows, so whatever is missing has to be asked for. */
    w->burst_end = request[1] & 0x80 ? length
                   : w->wanted_bytes < SEGMENT_BYTES ? w->wanted_bytes : SEGMENT_BYTES;
    write_arrived(c, request, data, length);
}

static void inquiry(struct connection *c, const uint8_t *request, const uint8_t *cdb)
{
    uint8_t page[96] = {0};
    if (!(cdb[1] & 1)) {
        page[2] = 0x06;                    /* SPC-4 */
        page[3] = 0x02;
        page[4] = 91;
        page[7] = 0x02;                    /* CMDQUE */
        memcpy(page + 8, "BENCH   CEILING         1   ", 28);
        answer(c, request, page, 96);
        return;
    }
    page[1] = cdb[2];
    switch (cdb[2]) {
    case 0x00:
        page[3] = 3;
        page[5] = 0x80;
        page[6] = 0x83;
        answer(c, request, page, 7);
        return;
    case 0x80:
        page[3] = 8;
        memcpy(page + 4, "CEILING1", 8);
        answer(c, request, page, 12);
        return;
    case 0x83:
        page[3] = 20;
        page[4] = 0x02;                    /* ASCII */
        page[5] = 0x01;                    /* T10 vendor id */
        page[7] = 16;
        memcpy(page + 8, "BENCH   CEILING1", 16);
        answer(c, request, page, 24);
        return;
    default:
        check_condition(c, request, 0x05, 0x24);
    }
}

static void scsi_command(struct connection *c, const uint8_t *request, const uint8_t *data, uint32_t length)
{
    const uint8_t *cdb = request + 32;
    uint8_t reply[32] = {0};
    switch (cdb[0]) {
    case 0x28:
        read_blocks(c, request, get32(cdb + 2), (uint32_t)cdb[7] << 8 | cdb[8]);
        return;
    case 0x88:
        read_blocks(c, request, get64(cdb + 2), get32(cdb + 10));
        return;
    case 0x2a:
        write_blocks(c, request, get32(cdb + 2), (uint32_t)cdb[7] << 8 | cdb[8], data, length);
        return;
    case 0x8a:
        write_blocks(c, request, get64(cdb + 2), get32(cdb + 10), data, length);
        return;
    case 0x35:
    case 0x91: /* SYNCHRONIZE CACHE, whatever its range: the whole file */
        if (fdatasync(file) == 0)
            good(c, request);
        else
            check_condition(c, request, 0x03, 0x0c);
        return;
    case 0x00: /* TEST UNIT READY */
        good(c, request);
        return;
    case 0x12:
        inquiry(c, request, cdb);
        return;
    case 0x25: /* READ CAPACITY(10) */
        put32(reply, size_blocks - 1 > 0xffffffff ? 0xffffffff : (uint32_t)(size_blocks - 1));
        put32(reply + 4, BLOCK_BYTES);
        answer(c, request, reply, 8);
        return;
    case 0x9e: /* READ CAPACITY(16) */
        put64(reply, size_blocks - 1);
        put32(reply + 8, BLOCK_BYTES);
        answer(c, request, reply, 32);
        return;
    case 0xa0: /* REPORT LUNS */
        reply[3] = 8;
        reply[9] = 1;
        answer(c, request, reply, 16);
        return;
    case 0x1a: /* MODE SENSE(6), no pages */
        reply[0] = 3;
        answer(c, request, reply, 4);
        return;
    case 0x5a: /* MODE SENSE(10), no pages */
        reply[1] = 6;
        answer(c, request, reply, 8);
        return;
    default:
        check_condition(c, request, 0x05, 0x20);
    }
}

/* Login (11.13): agrees to whatever stage is asked for; the keys are ours, the same each time. */
static void login(struct connection *c, const uint8_t *request)
{
    static const char security[] = "AuthMethod=None\0TargetPortalGroupTag=1";
    static const char operational[] =
        "HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0MaxConnections=1\0MaxOutstandingR2T=1\0"
        "ErrorRecoveryLevel=0\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0"
        "MaxRecvDataSegmentLength=262144\0FirstBurstLength=262144\0MaxBurstLength=262144";
    int stage = request[1] >> 2 & 3;
    uint8_t *out;
    c->exp_cmd_sn = get32(request + 24);
    out = begin(c, request, 0x23, request[1] & 0x8f);
    memcpy(out + 8, request + 8, 6); /* ISID */
    out[15] = 1;                     /* TSIH */
    c->stat_sn++;
    if (stage == 0)
        memcpy(out + BHS_BYTES, security, sizeof security);
    else
        memcpy(out + BHS_BYTES, operational, sizeof operational);
    finish(c, stage == 0 ? sizeof security : sizeof operational);
}

static void one_pdu(struct connection *c, const uint8_t *pdu, const uint8_t *data, uint32_t length)
{
    uint8_t opcode = pdu[0] & 0x3f;
    if (opcode != 0x03 && opcode != 0x05 && !(pdu[0] & 0x40))
        c->exp_cmd_sn++;
    switch (opcode) {
    case 0x00: /* NOP-Out; a task tag of all ones wants no answer */
        if (get32(pdu + 16) != 0xffffffff) {
            begin(c, pdu, 0x20, 0x80);
            put32(c->out + 20, 0xffffffff);
            c->stat_sn++;
            finish(c, 0);
        }
        return;
    case 0x01:
        scsi_command(c, pdu, data, length);
        return;
    case 0x02: /* task management: function complete */
        begin(c, pdu, 0x22, 0x80);
        c->stat_sn++;
        finish(c, 0);
        return;
    case 0x03:
        login(c, pdu);
        return;
    case 0x05:
        write_arrived(c, pdu, data, length);
        return;
    case 0x06: /* logout */
        begin(c, pdu, 0x26, 0x80);
        finish(c, 0);
        hang_up(c);
        return;
    default:
        hang_up(c);
    }
}

static void *serve(void *argument)
{
    struct connection *c = argument;
    for (;;) {
        size_t at = 0;
        ssize_t n = recv(c->socket, c->in + c->received, sizeof c->in - c->received, 0);
        if (n <= 0)
            hang_up(c);
        c->received += (size_t)n;
        while (c->received - at >= BHS_BYTES) {
            uint8_t *pdu = c->in + at;
            uint32_t length = get24(pdu + 5);
            size_t header = BHS_BYTES + pdu[4] * 4u, whole = header + length + (-length & 3);
            if (length > SEGMENT_BYTES)
                hang_up(c);
            if (c->received - at < whole)
                break;
            one_pdu(c, pdu, pdu + header, length);
            at += whole;
        }
        memmove(c->in, c->in + at, c->received - at);
        c->received -= at;
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t address_length = sizeof address;
    struct stat facts;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: %s FILE [PORT]\n", argv[0]);
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    address.sin_port = htons(argc == 3 ? (uint16_t)atoi(argv[2]) : 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    file = open(argv[1], O_RDWR | O_CLOEXEC);
    if (file < 0 || fstat(file, &facts) != 0) {
        perror(argv[1]);
        return 1;
    }
    size_blocks = (uint64_t)facts.st_size / BLOCK_BYTES;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 16) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &address_length) != 0) {
        perror("127.0.0.1");
        return 1;
    }
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        pthread_t thread;
        struct connection *c;
        int accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (accepted < 0)
            continue;
        setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c = calloc(1, sizeof *c);
        if (c == NULL)
            return 1;
        c->socket = accepted;
        c->stat_sn = 1;
        if (pthread_create(&thread, NULL, serve, c) != 0) {
            close(accepted);
            free(c);
            continue;
        }
        pthread_detach(thread);
    }
}
