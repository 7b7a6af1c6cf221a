//! HTTPS connections: in the same bounds as those of HTTP, from the first byte of the handshake.

use std::net::SocketAddr;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio_rustls::{TlsConnector, client};

use super::{
    tests::{LONG, SHORT, bounds, serve_with},
    *,
};
use crate::tls::{Identity, testing::Authority};

type Stream = client::TlsStream<TcpStream>;

/// A server, and how a client trusts it.
async fn serve(bounds: Bounds) -> (SocketAddr, TlsConnector, CancellationToken, tokio::task::JoinHandle<()>) {
    let authority = Authority::new("authority");
    let issued = authority.issue(&["localhost"]);
    let identity = Identity::parse("server", issued.certificate.into(), issued.key.into()).unwrap();
    // A receiver keeps its last value when the sender is gone.
    let tls = watch::channel(Arc::new(identity.server_config().unwrap())).1;
    let (address, stop, serving) = serve_with(Some(tls), bounds).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    (address, TlsConnector::from(Arc::new(config)), stop, serving)
}

async fn connect(address: SocketAddr, connector: &TlsConnector) -> io::Result<Stream> {
    let stream = TcpStream::connect(address).await?;
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// All that comes, until the server ends the connection.
async fn rest(stream: &mut Stream) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

async fn ask(address: SocketAddr, connector: &TlsConnector) -> io::Result<String> {
    let mut stream = connect(address, connector).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// Waits until a request is answered with 200.
async fn is_served(address: SocketAddr, connector: &TlsConnector) {
    let trying = async {
        while !ask(address, connector).await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            tokio::time::sleep(SHORT / 10).await;
        }
    };
    tokio::time::timeout(LONG, trying).await.expect("a place comes back");
}

#[tokio::test]
async fn a_handshake_that_does_not_end_gives_its_place_back() {
    let one = Bounds { most: 1, ..bounds(Pace { head: SHORT, idle: LONG, stall: LONG }) };
    let (address, connector, ..) = serve(one).await;
    let _silent = TcpStream::connect(address).await.unwrap();
    is_served(address, &connector).await;
    let mut drip = TcpStream::connect(address).await.unwrap();
    // The head of a record of a handshake; its content comes byte by byte.
    drip.write_all(&[22, 3, 1, 64, 0]).await.unwrap();
    let dripping = async {
        while drip.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(SHORT / 10).await;
        }
    };
    tokio::time::timeout(LONG, dripping).await.expect("it is cut off");
    is_served(address, &connector).await;
}

#[tokio::test]
async fn a_head_that_does_not_end_is_answered_408_by_tls() {
    let (address, connector, ..) = serve(bounds(Pace { head: SHORT, idle: LONG, stall: LONG })).await;
    let mut slow = connect(address, &connector).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx: ").await.unwrap();
    let mut text = vec![0; 4096];
    let n = slow.read(&mut text).await.unwrap();
    let said = String::from_utf8_lossy(&text[..n]);
    assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("\"code\":\"request_timeout\""), "{said}");
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_off_by_tls() {
    let one = Bounds { most: 1, ..bounds(Pace { head: LONG, idle: LONG, stall: SHORT }) };
    let (address, connector, ..) = serve(one).await;
    let mut stalled = connect(address, &connector).await.unwrap();
    stalled.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 16];
    stalled.read_exact(&mut first).await.unwrap();
    is_served(address, &connector).await;
}

#[tokio::test]
async fn above_the_bound_a_connection_is_told_so_by_tls() {
    let (address, connector, ..) = serve(Bounds { most: 1, ..Bounds::default() }).await;
    let held = connect(address, &connector).await.unwrap();
    let mut refused = connect(address, &connector).await.unwrap();
    refused.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let said = rest(&mut refused).await;
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("too_many_connections"), "{said}");
    drop(held);
    is_served(address, &connector).await;
}

#[tokio::test]
async fn a_client_without_tls_and_one_of_http2_alone_are_refused() {
    let (address, connector, ..) = serve(Bounds::default()).await;
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "nothing is answered in the clear");
    let mut config = ClientConfig::clone(connector.config());
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert!(connect(address, &TlsConnector::from(Arc::new(config.clone()))).await.is_err());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let both = connect(address, &TlsConnector::from(Arc::new(config))).await.unwrap();
    assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn at_a_stop_a_handshake_is_not_waited_for() {
    let (address, connector, stop, serving) = serve(Bounds { last: LONG, ..Bounds::default() }).await;
    is_served(address, &connector).await;
    let _silent = TcpStream::connect(address).await.unwrap();
    stop.cancel();
    tokio::time::timeout(LONG / 2, serving).await.expect("it ends at once").unwrap();
}
