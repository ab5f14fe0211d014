//! m2m's client: the protocol's own machines on one socket, each flow a session from an address of its own.
//!
//! All flows lead to one server. A machine is told that each of them leads to an address of its own, the one that its
//! flow leaves from: so what it wants to send tells the flow, and so does the address that an answer comes to.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use m2m::{Code, Id, OptionSet};
use m2m_proto::config::Config;
use m2m_proto::event::{Event, Output, RequestId, SessionId};
use m2m_proto::net::{Net, Request, Route};
use m2m_proto::session::keys::{DeviceKey, NetKey, PeerKey};
use m2m_proto::time::Time;

use super::load::Load;
use super::plain::failed;
use super::udp::{self, Inbox, Outbox, Socket, flow_of};
use super::{SERVER, Secrets, numbered};
use crate::exit::Failure;

/// Sessions that one net has with the server: what it allows by default.
const SESSIONS_EACH: u32 = 64;
/// All sessions are up within this time, or the server has failed.
const PATIENCE: Duration = Duration::from_secs(60);

struct Member {
    net: Net,
    due: Time,
    is_touched: bool,
}

/// Nets that keep so many flows busy.
pub(super) struct Fleet {
    members: Vec<Member>,
    /// By flow.
    sessions: Vec<SessionId>,
    world: World,
    inbox: Inbox,
    touched: Vec<usize>,
    next_flow: u32,
    payload: Vec<u8>,
}

/// What the members share: the socket, and what came of their requests.
struct World {
    socket: Socket,
    outbox: Outbox,
    server: SocketAddr,
    has_flows: bool,
    started: Instant,
    answered: Vec<u32>,
    connected: u32,
    failed: Option<String>,
    payload: Vec<u8>,
}

impl World {
    fn now(&self) -> Time {
        Time::from_micros(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Does what a machine wants done.
    fn carry_out(&mut self, member: &mut Member, now: Time) -> Result<(), Failure> {
        loop {
            match member.net.poll_output(now) {
                Output::Timeout(due) => {
                    member.due = due;
                    return Ok(());
                }
                Output::Datagram { to, bytes } => {
                    let from = self.has_flows.then_some(to.ip());
                    self.outbox.push(&self.socket, self.server, from, &bytes).map_err(failed)?;
                    member.net.recycle(bytes);
                }
                Output::Event(Event::Response { request, message }) => {
                    if message.ends_with(&self.payload) {
                        self.answered.push(request.0 as u32);
                    } else {
                        self.failed = Some("the server's answer is not an echo".into());
                    }
                    member.net.recycle(message);
                }
                Output::Event(Event::Connected { .. }) => self.connected += 1,
                Output::Event(Event::RequestFailed { why, .. }) => {
                    self.failed = Some(format!("a request failed: {why}"));
                }
                Output::Event(Event::ConnectFailed { why, .. }) => {
                    self.failed = Some(format!("a session did not come up: {why}"));
                }
                Output::Event(Event::Closed { why, .. }) => {
                    self.failed = Some(format!("a session ended: {why}"));
                }
                _ => {}
            }
        }
    }
}

impl Fleet {
    /// Opens so many sessions with the server, and waits until all are up.
    pub(super) fn open(
        server: SocketAddr,
        secrets: &mut Secrets,
        flows: u32,
        size: usize,
    ) -> Result<Fleet, Failure> {
        let socket = Socket::for_flows(flows)?;
        let world = World {
            socket,
            outbox: Outbox::new(),
            server,
            has_flows: flows > 1,
            started: Instant::now(),
            answered: Vec::new(),
            connected: 0,
            failed: None,
            payload: vec![7; size],
        };
        let mut fleet = Fleet {
            members: Vec::new(),
            sessions: Vec::new(),
            inbox: Inbox::new(),
            touched: Vec::new(),
            next_flow: 0,
            payload: world.payload.clone(),
            world,
        };
        for flow in 0..flows {
            fleet.connect(flow, secrets)?;
        }
        fleet.wait_until_up(flows)?;
        Ok(fleet)
    }

    fn connect(&mut self, flow: u32, secrets: &mut Secrets) -> Result<(), Failure> {
        let at = (flow / SESSIONS_EACH) as usize;
        if at == self.members.len() {
            let own: Id = numbered(0xC1, at as u64);
            let key: NetKey = secrets.net_key()?;
            let config = Config::new(own, key.clone(), DeviceKey::derived_from(&key, own));
            let net = Net::new(config, secrets.seed()?, self.world.now());
            self.members.push(Member { net, due: Time::ZERO, is_touched: false });
        }
        let key = PeerKey::Net(secrets.net_key()?);
        let to = SocketAddr::new(udp::flow_address(flow).into(), self.world.server.port());
        let now = self.world.now();
        let Some(member) = self.members.get_mut(at) else { return Ok(()) };
        let session = member.net.connect(now, SERVER, &key, Route::Direct(to));
        let session = session.map_err(|why| Failure::Other(format!("can't open session {flow}: {why}")))?;
        self.sessions.push(session);
        self.touch(at);
        // Not all at once: the server's socket has to hold what comes meanwhile.
        if flow % SESSIONS_EACH == SESSIONS_EACH - 1 {
            self.wait_until_up(flow + 1)?;
        }
        Ok(())
    }

    fn wait_until_up(&mut self, count: u32) -> Result<(), Failure> {
        let start = Instant::now();
        let mut none = Vec::new();
        while self.world.connected < count {
            self.flush()?;
            self.take(&mut none)?;
            if start.elapsed() > PATIENCE {
                return Err(Failure::TimedOut(format!(
                    "only {} of {count} sessions came up within {} s",
                    self.world.connected,
                    PATIENCE.as_secs()
                )));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    fn touch(&mut self, at: usize) {
        if let Some(member) = self.members.get_mut(at).filter(|member| !member.is_touched) {
            member.is_touched = true;
            self.touched.push(at);
        }
    }

    /// Does what the members want done that something has happened to.
    fn carry_out(&mut self) -> Result<(), Failure> {
        let now = self.world.now();
        while let Some(at) = self.touched.pop() {
            let Some(member) = self.members.get_mut(at) else { continue };
            member.is_touched = false;
            self.world.carry_out(member, now)?;
        }
        match self.world.failed.take() {
            Some(words) => Err(Failure::Other(words)),
            None => Ok(()),
        }
    }
}

impl Load for Fleet {
    fn ask(&mut self, slot: u32) -> Result<(), Failure> {
        let flow = self.next_flow;
        self.next_flow = (flow + 1) % self.sessions.len() as u32;
        let at = (flow / SESSIONS_EACH) as usize;
        let (Some(member), Some(session)) = (self.members.get_mut(at), self.sessions.get(flow as usize))
        else {
            return Ok(());
        };
        let (now, options) = (self.world.now(), OptionSet::default());
        let request = Request {
            code: Code::POST,
            options: &options,
            payload: &self.payload,
            confirmable: true,
            repeatable: false,
            deadline: now + Duration::from_secs(30),
        };
        let asked = member.net.request(now, *session, RequestId(slot.into()), &request);
        asked.map_err(|why| Failure::Other(format!("can't send a request: {why}")))?;
        self.touch(at);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.carry_out()?;
        self.world.outbox.flush(&self.world.socket).map_err(failed)
    }

    fn take(&mut self, answered: &mut Vec<u32>) -> Result<(), Failure> {
        let now = self.world.now();
        let (members, touched) = (&mut self.members, &mut self.touched);
        let port = self.world.server.port();
        let some = self.inbox.receive(&self.world.socket, |datagram, way| {
            let to = way.to.unwrap_or(IpAddr::from(udp::flow_address(0)));
            let Some(flow) = flow_of(to) else { return };
            let at = (flow / SESSIONS_EACH) as usize;
            let Some(member) = members.get_mut(at) else { return };
            member.net.handle_datagram(now, SocketAddr::new(to, port), datagram);
            if !std::mem::replace(&mut member.is_touched, true) {
                touched.push(at);
            }
        });
        if !some.map_err(failed)? {
            for at in 0..self.members.len() {
                if let Some(member) = self.members.get_mut(at).filter(|member| member.due <= now) {
                    member.net.handle_timeout(now);
                    self.touch(at);
                }
            }
        }
        self.carry_out()?;
        answered.append(&mut self.world.answered);
        Ok(())
    }
}
