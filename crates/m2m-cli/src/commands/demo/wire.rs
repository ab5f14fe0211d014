//! A piece of network inside the demo: it carries datagrams to one net and back, can be cut, and can change the port
//! that it shows to that net, as a NAT does when it forgets.
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::any_port;

/// Larger than any datagram here.
const BUFFER: usize = 2048;

/// Carries until it is dropped.
pub(super) struct Wire {
    near: SocketAddr,
    is_cut: watch::Sender<bool>,
    far: watch::Sender<Arc<UdpSocket>>,
    to: SocketAddr,
    /// The token in the last short packet that came back: the near end's.
    token: Arc<Mutex<Option<[u8; 4]>>>,
    task: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    pub(super) async fn to(to: SocketAddr) -> Result<Wire, String> {
        let near = socket().await?;
        let address = near.local_addr().map_err(|error| format!("expected a socket, came: {error}"))?;
        let (far, far_now) = watch::channel(Arc::new(outside(to).await?));
        let (is_cut, cut_now) = watch::channel(false);
        let token = Arc::new(Mutex::new(None));
        let task = tokio::spawn(carry(near, far_now, cut_now, token.clone()));
        Ok(Wire { near: address, is_cut, far, to, token, task })
    }

    /// Whoever is to use it sends here.
    pub(super) fn address(&self) -> SocketAddr {
        self.near
    }

    pub(super) fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }

    /// From now on the far end sees another port, and what it sends to the old one is lost.
    pub(super) async fn change_port(&self) -> Result<(u16, u16), String> {
        let new = Arc::new(outside(self.to).await?);
        let port = |socket: &UdpSocket| socket.local_addr().map_or(0, |address| address.port());
        let after = port(&new);
        let before = self.far.send_replace(new);
        Ok((port(&before), after))
    }

    /// What the last packet that came back was labelled with.
    pub(super) fn last_token(&self) -> Option<[u8; 4]> {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn socket() -> Result<UdpSocket, String> {
    UdpSocket::bind(any_port()).await.map_err(|error| format!("expected a socket, came: {error}"))
}

async fn outside(to: SocketAddr) -> Result<UdpSocket, String> {
    let socket = socket().await?;
    socket.connect(to).await.map_err(|error| format!("expected a way to {to}, came: {error}"))?;
    Ok(socket)
}

async fn carry(
    near: UdpSocket,
    mut far_now: watch::Receiver<Arc<UdpSocket>>,
    cut_now: watch::Receiver<bool>,
    token: Arc<Mutex<Option<[u8; 4]>>>,
) {
    let (mut there, mut back) = (vec![0; BUFFER], vec![0; BUFFER]);
    let mut user = None;
    loop {
        let far = far_now.borrow_and_update().clone();
        tokio::select! {
            came = near.recv_from(&mut there) => {
                // A refused datagram (ICMP) is one that got lost.
                let Ok((len, from)) = came else { continue };
                user = Some(from);
                if !*cut_now.borrow() {
                    let _ = far.send(there.get(..len).unwrap_or_default()).await;
                }
            }
            came = far.recv(&mut back) => {
                let Ok(len) = came else { continue };
                let bytes = back.get(..len).unwrap_or_default();
                note_token(bytes, &token);
                if let Some(user) = user.filter(|_| !*cut_now.borrow()) {
                    let _ = near.send_to(bytes, user).await;
                }
            }
            changed = far_now.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Short packets start with a clear top bit, and then the token (protocol, section 3.4).
fn note_token(bytes: &[u8], token: &Mutex<Option<[u8; 4]>>) {
    if let [first, rest @ ..] = bytes
        && first & 0x80 == 0
        && let Some(label) = rest.first_chunk()
    {
        *token.lock().unwrap_or_else(PoisonError::into_inner) = Some(*label);
    }
}
