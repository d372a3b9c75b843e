// A stand-in for llama-server that compiles in a second: it says its version, and serves /health and /completion.
// It cannot compute: what it answers to a self-test it reads from case.json, which lies beside the model. How it fails
// is decided when it is compiled, so that a build of it is a build of a program with a fault.
#include <arpa/inet.h>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <sys/socket.h>
#include <unistd.h>

int fault();  // of native.cpp: the signal that the code for this CPU dies of, 0 when it does not

static std::string option(int argc, char ** argv, const char * name) {
    for (int i = 1; i + 1 < argc; i++) {
        if (!std::strcmp(argv[i], name)) return argv[i + 1];
    }
    return "";
}

static std::string answer(const std::string & request, const std::string & cases) {
    size_t at = request.find("\"prompt\""), end = request.find(']', at);
    int tokens = 1;
    for (size_t i = at; i < end; i++) tokens += request[i] == ',';
    std::string key = "\"" + std::to_string(tokens) + "\": [";
    std::stringstream values(cases.substr(cases.find(key, cases.find("\"logprobs\"")) + key.size()));
    std::string body = "{\"completion_probabilities\": [{\"top_logprobs\": [";
    double value;
    for (int id = 0; values >> value; id++) {
        body += (id ? ", " : "") + ("{\"id\": " + std::to_string(id)) + ", \"logprob\": "
              + std::to_string(value + (OFF_BY * (id % 3 - 1))) + "}";
        if (values.get() != ',') break;
    }
    return body + "]}]}";
}

static void serve(int port, const std::string & cases) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1, answers = 0;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (sockaddr *) &address, sizeof address) || listen(listener, 16)) std::exit(1);
    if (fault() && !std::strcmp(DIES, "at load")) raise(fault());
    for (;;) {
        int client = accept(listener, nullptr, nullptr);
        std::string request;
        char buffer[65536];
        size_t head, length = 0;
        for (;;) {
            ssize_t n = read(client, buffer, sizeof buffer);
            if (n <= 0) break;
            request.append(buffer, n);
            if ((head = request.find("\r\n\r\n")) == std::string::npos) continue;
            size_t told = request.find("ontent-");
            while (told != std::string::npos && strncasecmp(request.c_str() + told, "ontent-length:", 14)) {
                told = request.find("ontent-", told + 1);
            }
            length = told < head ? std::atoi(request.c_str() + told + 14) : 0;
            if (request.size() >= head + 4 + length) break;
        }
        std::string body = "{\"status\": \"ok\"}";
        if (!request.compare(0, 16, "POST /completion")) {
            if (fault() && !std::strcmp(DIES, answers ? "at a later answer" : "at the first token")) {
                std::fprintf(stderr, "ggml: about to compute\n");
                raise(fault());
            }
            answers++;
            body = answer(request, cases);
        }
        std::string whole = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "
                          + std::to_string(body.size()) + "\r\n\r\n" + body;
        for (size_t sent = 0; sent < whole.size();) {
            ssize_t n = write(client, whole.data() + sent, whole.size() - sent);
            if (n <= 0) break;
            sent += n;
        }
        close(client);
    }
}

int main(int argc, char ** argv) {
    if (argc > 1 && !std::strcmp(argv[argc - 1], "--version")) {  // it ends upstream's, too, once all is read
        std::printf("version: %d (%s)\n", N, COMMIT);
        return 0;
    }
    std::string model = option(argc, argv, "--model");
    std::ifstream file(model.substr(0, model.rfind('/') + 1) + "case.json");
    std::stringstream cases;
    cases << file.rdbuf();
    serve(std::atoi(option(argc, argv, "--port").c_str()), cases.str());
}
