//! A TCP forwarder between a zone and a node, for what only a network or a killed process does: cut, or silence.

use std::net::SocketAddr;

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// Connections are closed, and new ones at accept.
    Cut,
    /// Connections stay open and nothing passes.
    Silent,
}

pub struct Pipe {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    _task: JoinSet<()>,
}

impl Pipe {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Forward);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(forward(stream, target, modes.clone()));
            }
        });
        Self {
            address,
            mode,
            _task: task,
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn forward(mut from: TcpStream, target: SocketAddr, mut modes: watch::Receiver<Mode>) {
    if *modes.borrow_and_update() == Mode::Cut {
        return;
    }
    let Ok(mut to) = TcpStream::connect(target).await else { return };
    loop {
        let mode = *modes.borrow_and_update();
        tokio::select! {
            changed = modes.changed() => if changed.is_err() { return },
            // What is half copied when the mode changes is lost; so after silence the connection is of no use, as in life.
            _ = tokio::io::copy_bidirectional(&mut from, &mut to), if mode == Mode::Forward => return,
            () = std::future::ready(()), if mode == Mode::Cut => return,
        }
    }
}
