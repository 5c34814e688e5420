/* A milter on Sendmail's libmilter that does what the subject of the message asks for. */
#include <libmilter/mfapi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

struct priv { char subject[256]; long body; int headers; char macro[256]; };
static struct priv *get(SMFICTX *ctx) {
    struct priv *p = smfi_getpriv(ctx);
    if (p == NULL) { p = calloc(1, sizeof *p); smfi_setpriv(ctx, p); }
    return p;
}
static sfsistat on_connect(SMFICTX *ctx, char *name, _SOCK_ADDR *addr) { get(ctx); return SMFIS_CONTINUE; }
static sfsistat on_helo(SMFICTX *ctx, char *name) {
    if (strcmp(name, "reject.test") == 0) return SMFIS_REJECT;
    return SMFIS_CONTINUE;
}
static sfsistat on_from(SMFICTX *ctx, char **argv) {
    struct priv *p = get(ctx);
    char *i = smfi_getsymval(ctx, "i"), *a = smfi_getsymval(ctx, "{mail_addr}");
    p->subject[0] = 0; p->body = 0; p->headers = 0;
    snprintf(p->macro, sizeof p->macro, "i=%s mail_addr=%s", i ? "set" : "unset", a ? a : "unset");
    if (strcmp(argv[0], "<reject@example.com>") == 0) return SMFIS_REJECT;
    if (strcmp(argv[0], "<tempfail@example.com>") == 0) return SMFIS_TEMPFAIL;
    if (strcmp(argv[0], "<accept@example.com>") == 0) return SMFIS_ACCEPT;
    if (strcmp(argv[0], "<discard@example.com>") == 0) return SMFIS_DISCARD;
    return SMFIS_CONTINUE;
}
static sfsistat on_rcpt(SMFICTX *ctx, char **argv) {
    if (strcmp(argv[0], "<no@example.com>") == 0) {
        smfi_setmlreply(ctx, "550", "5.1.1", "100%% of them", "are not here", NULL);
        return SMFIS_REJECT;
    }
    return SMFIS_CONTINUE;
}
static sfsistat on_data(SMFICTX *ctx) { return SMFIS_CONTINUE; }
static sfsistat on_header(SMFICTX *ctx, char *name, char *value) {
    struct priv *p = get(ctx);
    p->headers++;
    if (strcmp(name, "Subject") == 0) snprintf(p->subject, sizeof p->subject, "%s", value);
    return getenv("NOREPLY") ? SMFIS_NOREPLY : SMFIS_CONTINUE;
}
static sfsistat on_eoh(SMFICTX *ctx) { return SMFIS_CONTINUE; }
static sfsistat on_body(SMFICTX *ctx, unsigned char *octets, size_t size) {
    struct priv *p = get(ctx);
    p->body += size;
    return strstr(p->subject, "skip") ? SMFIS_SKIP : SMFIS_CONTINUE;
}
static sfsistat on_eom(SMFICTX *ctx) {
    struct priv *p = get(ctx);
    char text[512];
    if (strstr(p->subject, "progress")) smfi_progress(ctx);
    snprintf(text, sizeof text, "%d headers,\n %ld octets", p->headers, p->body);
    smfi_addheader(ctx, "X-Seen", text);
    smfi_insheader(ctx, 0, "X-Macros", p->macro);
    if (strstr(p->subject, "change")) {
        smfi_insheader(ctx, 1, "X-First", "first");
        smfi_insheader(ctx, 2, "X-Second", "second");
        smfi_chgheader(ctx, "Subject", 1, "changed");
        smfi_chgheader(ctx, "X-Remove", 2, NULL);
        smfi_chgheader(ctx, "X-New", 1, "new");
    }
    if (strstr(p->subject, "body")) {
        smfi_replacebody(ctx, (unsigned char *) "another\r\n", 9);
        smfi_replacebody(ctx, (unsigned char *) "body\r\n", 6);
    }
    if (strstr(p->subject, "envelope")) {
        smfi_chgfrom(ctx, "<other@example.com>", "RET=HDRS");
        smfi_addrcpt(ctx, "<added@example.com>");
        smfi_addrcpt_par(ctx, "<more@example.com>", "NOTIFY=NEVER");
        smfi_delrcpt(ctx, "<b@example.com>");
    }
    if (strstr(p->subject, "quarantine")) smfi_quarantine(ctx, "looks odd");
    if (strstr(p->subject, "reject")) return SMFIS_REJECT;
    if (strstr(p->subject, "tempfail")) return SMFIS_TEMPFAIL;
    if (strstr(p->subject, "discard")) return SMFIS_DISCARD;
    if (strstr(p->subject, "reply")) { smfi_setreply(ctx, "451", "4.7.7", "not now"); return SMFIS_TEMPFAIL; }
    if (strstr(p->subject, "accept")) return SMFIS_ACCEPT;
    return SMFIS_CONTINUE;
}
static sfsistat on_abort(SMFICTX *ctx) { return SMFIS_CONTINUE; }
static sfsistat on_close(SMFICTX *ctx) { free(smfi_getpriv(ctx)); smfi_setpriv(ctx, NULL); return SMFIS_CONTINUE; }
static sfsistat on_unknown(SMFICTX *ctx, const char *line) { return SMFIS_CONTINUE; }
static sfsistat on_negotiate(SMFICTX *ctx, unsigned long a, unsigned long s, unsigned long x, unsigned long y,
    unsigned long *pa, unsigned long *ps, unsigned long *px, unsigned long *py) {
    *pa = a & 0x1ff; *ps = SMFIP_SKIP; *px = *py = 0;
    if (getenv("NOREPLY")) *ps |= SMFIP_NR_HDR;
    if (getenv("LEADSPC")) *ps |= SMFIP_HDR_LEADSPC;
    if (getenv("SYMLIST")) smfi_setsymlist(ctx, SMFIM_ENVFROM, "i");
    return SMFIS_CONTINUE;
}
static struct smfiDesc description = {
    "allactions", SMFI_VERSION, 0x1ff, on_connect, on_helo, on_from, on_rcpt, on_header, on_eoh, on_body, on_eom,
    on_abort, on_close, on_unknown, on_data, on_negotiate
};
int main(int argc, char **argv) {
    smfi_setconn(argv[1]);
    if (smfi_register(description) == MI_FAILURE) return EX_UNAVAILABLE;
    return smfi_main();
}
