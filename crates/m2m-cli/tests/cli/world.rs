//! What the tests share: a home folder of their own, keys in it, and processes that end with the test.
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than any command here should take, even on a machine that does three other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// A home folder with three keys: `host.key`, `dev.key`, `app.key`.
pub(crate) struct World {
    folder: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl World {
    pub(crate) fn new() -> World {
        let world = World::without_keys();
        for key in ["host.key", "dev.key", "app.key"] {
            world.run(&["keygen", "-o", key]).ok();
        }
        world
    }

    /// An empty home folder.
    pub(crate) fn without_keys() -> World {
        World { folder: tempfile::tempdir().expect("no folder for the test") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command in the world's folder, with nothing of the caller's environment that it would heed.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m2m"));
        command
            .args(words)
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .stdin(Stdio::null());
        let foreign = |name: &str| name.starts_with("M2M_") || name.starts_with("XDG_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(foreign)) {
            command.env_remove(name);
        }
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Ended {
        ended(self.command(words), b"")
    }

    /// Runs a command with this on its stdin.
    pub(crate) fn run_with(&self, words: &[&str], stdin: &[u8]) -> Ended {
        ended(self.command(words), stdin)
    }

    /// Starts a host with id 1 on this port of the loopback, and waits until it is ready.
    pub(crate) fn host_at(&self, bind: &str) -> Running {
        let words = [
            "server",
            "--id",
            "1",
            "--key-file",
            "host.key",
            "--bind",
            bind,
            "--state-dir",
            "host",
            "--json",
        ];
        Running::start(self.command(&words))
    }

    pub(crate) fn host(&self) -> Running {
        self.host_at("127.0.0.1:0")
    }

    /// Starts a device with id 2 behind the host, and waits until the host has registered it.
    pub(crate) fn device(&self, host: &Running, more: &[&str]) -> Running {
        let at = format!("1@{}", host.address);
        let words =
            ["node", "--id", "2", "--key-file", "dev.key", "--host", &at, "--host-key-file", "host.key"];
        let device =
            Running::start(self.command(&[&words[..], &["--bind", "127.0.0.1:0", "--json"], more].concat()));
        device.wait_for("host_connected");
        device
    }

    /// The words of the app (id 3) for a verb, with the device's key.
    pub(crate) fn app(&self, host: &Running, words: &[&str]) -> Ended {
        self.run(&self.app_words(host, words).iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(crate) fn app_words(&self, host: &Running, words: &[&str]) -> Vec<String> {
        let at = format!("1@{}", host.address);
        let flags = ["--id", "3", "--key-file", "app.key", "--host", &at, "--host-key-file", "host.key"];
        let all = [words, &flags, &["--peer-key-file", "dev.key"]].concat();
        all.into_iter().map(str::to_owned).collect()
    }
}

impl Ended {
    /// The output, if the command succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// The sentence on stderr, if the command failed with this code and all of these words.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {self:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self.stderr
    }

    /// Each line of the output as an object.
    #[track_caller]
    pub(crate) fn objects(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        self.stdout.lines().map(parse).collect()
    }
}

fn ended(mut command: Command, stdin: &[u8]) -> Ended {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command doesn't start");
    // A command that reads nothing closes the pipe early: that is its business.
    let mut pipe = child.stdin.take().expect("piped");
    let stdin = stdin.to_vec();
    let feeder = thread::spawn(move || drop(pipe.write_all(&stdin)));
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let code = wait(&mut child);
    let _ = feeder.join();
    let text = |thread: thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ended { code, stdout: text(stdout), stderr: text(stderr) }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for the end of a process; one that does not end is killed, and has no code.
fn wait(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// A host or device that runs until the test ends.
pub(crate) struct Running {
    child: Child,
    pub(crate) address: String,
    events: mpsc::Receiver<Value>,
    stderr: PathBuf,
    _folder: tempfile::TempDir,
}

impl Running {
    /// Starts it, with `--json` among its words, and waits for the line that says it is ready.
    pub(crate) fn start(mut command: Command) -> Running {
        let folder = tempfile::tempdir().expect("no folder for its words");
        let stderr = folder.path().join("stderr");
        let words = std::fs::File::create(&stderr).expect("no file for its words");
        let mut child = command.stdout(Stdio::piped()).stderr(words).spawn().expect("it doesn't start");
        let events = events(child.stdout.take().expect("piped"));
        let mut running = Running { child, address: String::new(), events, stderr, _folder: folder };
        let ready = running.wait_for("ready");
        running.address = ready["addr"].as_str().expect("ready has an address").to_owned();
        running
    }

    /// The next event of this name; others before it are skipped.
    #[track_caller]
    pub(crate) fn wait_for(&self, name: &str) -> Value {
        self.wait_for_within(name, PATIENCE)
    }

    #[track_caller]
    pub(crate) fn wait_for_within(&self, name: &str, patience: Duration) -> Value {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) if event["event"] == name => return event,
                Ok(_) => {}
                Err(error) => panic!("no event {name}: {error}; it said: {}", self.words()),
            }
        }
    }

    /// What it said on stderr so far.
    pub(crate) fn words(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// The port it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("an address has a port")
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "no signal {name}");
    }

    /// Waits for its end and gives its exit code; `None` if a signal ended it.
    pub(crate) fn end(&mut self) -> Option<i32> {
        wait(&mut self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{} said: {}", self.address, self.words());
        }
    }
}

fn events(stdout: ChildStdout) -> mpsc::Receiver<Value> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let event = serde_json::from_str(&line).unwrap_or_else(|_| Value::String(line));
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A file's permission bits.
#[cfg(unix)]
pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).expect("the file is there").permissions().mode() & 0o777
}
