// Listens like llama-server, and dies as it is told: --dies SIGNAL --when load|asked|answered|resumed [--says WORDS]
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile sig_atomic_t resumed;
static void note_resume(int number) { (void)number; resumed = 1; }

static const char *option(int count, char **words, const char *name, const char *otherwise) {
    for (int n = 1; n + 1 < count; n++)
        if (!strcmp(words[n], name)) return words[n + 1];
    return otherwise;
}

// The way in which a faulty program comes by the signal, so that the kernel writes of it what it then writes.
static void die(const char *by) {
    if (!strcmp(by, "SEGV")) *(volatile int *)0 = 1;
    if (!strcmp(by, "ILL")) {
#if defined(__x86_64__)
        __asm__ volatile("ud2");
#elif defined(__aarch64__)
        __asm__ volatile(".inst 0x00000000");
#endif
    }
    if (!strcmp(by, "BUS")) {
        FILE *file = tmpfile();
        (void)!ftruncate(fileno(file), 4096);
        volatile char *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fileno(file), 0);
        (void)!ftruncate(fileno(file), 0);
        (void)*page;
    }
    if (!strcmp(by, "ABRT")) {
        fprintf(stderr, "ggml.c:1234: GGML_ASSERT(ctx->mem_buffer != NULL) failed\n");
        abort();
    }
    if (!strcmp(by, "KILL")) raise(SIGKILL);
    exit(7);
}

static void say(int client, const char *body) {
    char head[160];
    int size = snprintf(head, sizeof head,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                        "Connection: close\r\n\r\n", strlen(body));
    (void)!write(client, head, size);
    (void)!write(client, body, strlen(body));
}

int main(int count, char **words) {
    const char *by = option(count, words, "--dies", ""), *when = option(count, words, "--when", "");
    const char *fingerprint = option(count, words, "--fingerprint", ""), *alias = option(count, words, "--alias", "");
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(option(count, words, "--port", "0")))};
    signal(SIGCONT, note_resume);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    inet_pton(AF_INET, "127.0.0.1", &at.sin_addr);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 64)) return 1;
    fprintf(stderr, "loading the model\n%s\n", option(count, words, "--says", ""));
    usleep(100000);
    if (!strcmp(when, "load")) die(by);
    for (;;) {
        int client = accept(listener, NULL, NULL), size = 0, got;
        char request[65536], body[512];
        while (size < (int)sizeof request - 1 && (got = read(client, request + size, sizeof request - 1 - size)) > 0) {
            request[size += got] = 0;
            char *end = strstr(request, "\r\n\r\n"), *length = strcasestr(request, "content-length:");
            if (end && end + 4 + (length && length < end ? atoi(length + 15) : 0) <= request + size) break;
        }
        request[size] = 0;
        int completion = strstr(request, "/completion") != NULL;
        if (completion && (!strcmp(when, "asked") || (!strcmp(when, "resumed") && resumed))) die(by);
        snprintf(body, sizeof body,
                 "{\"status\":\"ok\",\"data\":[{\"id\":\"%s\"}],\"model\":\"%s\",\"system_fingerprint\":\"%s\","
                 "\"choices\":[{\"message\":{\"content\":\"Hello.\"}}]}", alias, alias, fingerprint);
        say(client, body);
        close(client);
        if (completion && !strcmp(when, "answered")) {
            usleep(200000); // what it dies of shows only after the client has gone on
            die(by);
        }
    }
}
