//! Devices that a test asks for, and the process that has them.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::counts;
use super::library::{kernels, library};

/// Tells a test that it is the process with the devices.
const CHILD: &str = "COUNTING_CHILD";

/// Devices of the counting runtime. By default one with 80 GiB and compute capability 9.0.
///
/// ```ignore
/// #[test]
/// fn ones_are_filled_by_one_kernel() {
///     Gpu::default().run(|| {
///         let device = best_device();
///         counting::reset();
///         let _ones = Tensor::ones([4], (Kind::Float, device));
///         assert_eq!(counting::counts().launches, 1);
///     });
/// }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Gpu {
    /// The compute capability, times ten: 80, 89, 90.
    pub sm: u32,
    /// Devices.
    pub devices: u32,
    /// Bytes of each device.
    pub memory: u64,
    /// Each tensor has memory of its own, and every byte of it is this before something is copied there: all that
    /// kernels leave. 0x3c makes 0.01 of f32 and bf16. `None`: what libtorch's cache holds, and counts of memory are
    /// those of users.
    pub fill: Option<u8>,
    /// The crate's own kernels compute, on the host.
    pub computes: bool,
}

impl Default for Gpu {
    fn default() -> Gpu {
        Gpu { sm: 90, devices: 1, memory: 80 << 30, fill: None, computes: false }
    }
}

/// True in the process that has the devices.
pub fn in_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

impl Gpu {
    /// Runs the body of the test that calls this in a process that has these devices, and fails as it fails. Call it
    /// once, directly in the test: the process is this test binary, told to run the same test. It fails as well if
    /// anything is written to standard error, which belongs to the user.
    ///
    /// False where there is no counting runtime.
    pub fn run<F: FnOnce()>(self, body: F) -> bool {
        self.run_in(&[vec![]], body)
    }

    /// The same in so many processes that a launcher would start together, each of which sees all of these devices.
    pub fn run_ranks<F: FnOnce()>(self, ranks: usize, body: F) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        drop(listener);
        let environment = |rank: usize| {
            let (rank, size) = (rank.to_string(), ranks.to_string());
            let names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"];
            let mut all: Vec<(&str, String)> =
                names.into_iter().zip([rank.clone(), rank, size.clone(), size]).collect();
            all.extend([("MASTER_ADDR", "127.0.0.1".into()), ("MASTER_PORT", port.clone())]);
            all
        };
        self.run_in(&(0..ranks).map(environment).collect::<Vec<_>>(), body)
    }

    fn run_in<F: FnOnce()>(self, processes: &[Vec<(&str, String)>], body: F) -> bool {
        let show_waits = std::env::var_os("COUNTING_BACKTRACE").is_some();
        if in_child() {
            if show_waits {
                counts::show_waits();
            }
            body();
            return true;
        }
        // The type of a closure has the path of the function around it.
        let path = std::any::type_name::<F>().split_once("::{{closure}}");
        let (path, _) = path.expect("the body is a closure in the test itself");
        let test = path.split_once("::").expect("a path in this crate").1;
        let mut children: Vec<Child> = Vec::new();
        for environment in processes {
            let Some(mut command) = self.command(&std::env::current_exe().unwrap()) else {
                return false;
            };
            command.env(CHILD, "1").args(["--exact", test, "--nocapture", "--include-ignored"]);
            command.envs(environment.iter().map(|(name, value)| (name, value)));
            let command =
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            children.push(command.spawn().unwrap());
        }
        for output in children.into_iter().map(|child| child.wait_with_output().unwrap()) {
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            let passed = output.status.success() && text.contains("1 passed");
            assert!(passed, "{self:?}: {}\n{text}{errors}", output.status);
            if show_waits {
                eprint!("{errors}"); // for --nocapture
            } else {
                assert_eq!(errors, "", "{self:?}: this is written to standard error");
            }
        }
        true
    }

    /// A program that has these devices. `None` where there is no counting runtime.
    pub fn command(self, program: &Path) -> Option<Command> {
        let mut command = Command::new(program);
        self.give_to(&mut command).then_some(command)
    }

    /// Gives a program these devices. With `COUNTING_REPORT` in its environment it leaves its counts in that file, for
    /// [`Counts::read`](super::Counts::read). False where there is no counting runtime.
    pub fn give_to(self, command: &mut Command) -> bool {
        let Some(library) = library() else { return false };
        command
            .env("LD_PRELOAD", library)
            .env_remove("CUDA_VISIBLE_DEVICES")
            .env("COUNTING_SM", self.sm.to_string())
            .env("COUNTING_DEVICES", self.devices.to_string())
            .env("COUNTING_MEMORY", self.memory.to_string());
        if let Some(byte) = self.fill {
            command.env("PYTORCH_NO_CUDA_MEMORY_CACHING", "1");
            command.env("COUNTING_FILL", byte.to_string());
        }
        if self.computes {
            command.env("COUNTING_KERNELS", kernels());
        }
        true
    }
}
