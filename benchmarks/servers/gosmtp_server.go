// go-smtp: takes every message and forgets it.
package main

import (
	"crypto/tls"
	"flag"
	"io"
	"log"
	"net"

	"github.com/emersion/go-smtp"
)

type accept struct{}

func (accept) Login(state *smtp.ConnectionState, username, password string) (smtp.Session, error) {
	return nil, smtp.ErrAuthUnsupported
}

func (accept) AnonymousLogin(state *smtp.ConnectionState) (smtp.Session, error) { return session{}, nil }

type session struct{}

func (session) Reset()                                        {}
func (session) Logout() error                                 { return nil }
func (session) Mail(from string, opts smtp.MailOptions) error { return nil }
func (session) Rcpt(to string) error                          { return nil }
func (session) Data(r io.Reader) error {
	_, err := io.ReadAll(r)
	return err
}

func main() {
	port := flag.String("port", "", "")
	certificate := flag.String("certificate", "", "")
	key := flag.String("key", "", "")
	lmtp := flag.Bool("lmtp", false, "")
	flag.Parse()
	server := smtp.NewServer(accept{})
	server.Domain = "localhost"
	server.LMTP = *lmtp
	server.AuthDisabled = true
	server.ErrorLog = log.New(io.Discard, "", 0)
	if *certificate != "" {
		pair, err := tls.LoadX509KeyPair(*certificate, *key)
		if err != nil {
			log.Fatal(err)
		}
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+*port)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.Serve(listener))
}
