//! Shared by several tests: the Python that has PEFT.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// The folder of `tests/`, `benches/` and `gpu/`: `LN_TUNING_DATA` where a test runs on another machine than the one it
/// was built on, otherwise the repository, which is the directory of this package or the one above.
pub fn root() -> PathBuf {
    if let Some(data) = std::env::var_os("LN_TUNING_DATA") {
        return data.into();
    }
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    above.find(|dir| dir.join("tests/python").is_dir()).expect("the repository").to_owned()
}

/// A folder for what the tests of one process make once and share.
pub fn shared(name: &str) -> PathBuf {
    let elsewhere = std::env::var_os("LN_TUNING_DATA").map(|_| std::env::temp_dir());
    elsewhere.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into()).join(name)
}

/// The interpreter with the packages of `tests/python/requirements.txt`: `LN_TUNING_PYTHON`, or the one in `.venv`.
pub fn python() -> Command {
    let path = std::env::var_os("LN_TUNING_PYTHON").map(PathBuf::from);
    let path = path.unwrap_or_else(|| root().join(".venv/bin/python"));
    assert!(
        path.exists(),
        "'{}' is not there: run `make setup-tests`, or set LN_TUNING_PYTHON to a Python with the packages of \
         tests/python/requirements.txt",
        path.display()
    );
    let mut command = Command::new(path);
    command.env("HF_HUB_OFFLINE", "1").env("OMP_NUM_THREADS", "1").env("PYTHONUNBUFFERED", "1");
    command
}

/// A Python that has imported the packages already and runs each script in a fork of itself.
struct Server {
    socket: PathBuf,
    /// It ends when its standard input is closed: with the tests.
    _process: Option<Child>,
}

impl Server {
    /// The one of `make unit`, which serves all tests, or that of this process.
    fn get() -> &'static Server {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| {
            if let Some(socket) = std::env::var_os("LN_TUNING_PYTHON_SERVER") {
                return Server { socket: socket.into(), _process: None };
            }
            let mut command = python();
            command.arg(script("serve.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut process = command.spawn().expect("Python starts");
            let mut socket = String::new();
            BufReader::new(process.stdout.take().unwrap()).read_line(&mut socket).unwrap();
            assert!(!socket.is_empty(), "tests/python/serve.py does not start: see above");
            Server { socket: socket.trim_end().into(), _process: Some(process) }
        })
    }

    /// The exit status of a script, its standard output and its standard error.
    fn run(&self, command: &[&str]) -> (i32, String, String) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        let directory = std::env::current_dir().unwrap();
        let request: Vec<&str> =
            [directory.to_str().unwrap()].iter().chain(command).copied().collect();
        writeln!(stream, "{}", serde_json::to_string(&request).unwrap()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        let answered = read.map_err(|error| error.to_string()).and_then(|_| {
            serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))
        });
        answered.unwrap_or_else(|error| {
            panic!("{command:?} has no answer of tests/python/serve.py: {error}")
        })
    }
}

fn script(name: &str) -> PathBuf {
    root().join("tests/python").join(name)
}

/// Runs a script of `tests/python` and gives what it printed; a failure shows all of its output.
pub fn run_python(name: &str, args: &[&str]) -> String {
    let (status, out, err) = try_python(name, args);
    assert!(status == 0, "{name} failed with status {status}\n{out}\n{err}");
    out
}

/// Runs a script of `tests/python`, or one of this path, and gives its exit status, standard output and standard error.
pub fn try_python(name: &str, args: &[&str]) -> (i32, String, String) {
    let script = script(name);
    let command: Vec<&str> = [script.to_str().unwrap()].iter().chain(args).copied().collect();
    Server::get().run(&command)
}

/// A real model in a GGUF file, SmolLM2-135M-Instruct.
pub fn smollm2() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| run_python("smollm2.py", &[]).trim().into())
}
