//! Choices that were measured on this machine, in the user's cache folder: later processes choose alike, and measure
//! nothing.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::regular;

/// Variables that change what the libraries below libtorch do on a processor.
const SETTINGS: [&str; 5] = [
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
];

/// Lines of `/proc/cpuinfo` that say which processor it is.
const PROCESSOR: [&str; 12] = [
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "flags",
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
    "CPU revision",
    "Features",
];

/// The folder, `$XDG_CACHE_HOME/ln-tuning` or `~/.cache/ln-tuning`; none where there is no home.
pub(super) fn folder() -> Option<PathBuf> {
    let named =
        |name: &str| Some(PathBuf::from(env::var_os(name)?)).filter(|dir| dir.is_absolute());
    let home = || named("HOME").filter(|home| home.is_dir()).map(|home| home.join(".cache"));
    Some(named("XDG_CACHE_HOME").or_else(home)?.join("ln-tuning"))
}

/// All that a measurement depends on: the processor, the number of threads, the libtorch and this crate. `None` where
/// the system does not tell.
pub(super) fn machine() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let first = info.split("\n\n").next()?;
    let tells =
        |line: &&str| PROCESSOR.contains(&line.split(':').next().unwrap_or_default().trim());
    let lines = first.lines().filter(tells);
    let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let processor = words.collect::<Vec<_>>().join("\n");
    if processor.is_empty() {
        return None;
    }
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    // A libtorch that is linked statically is a part of the program.
    let program = env::current_exe().ok()?;
    let library = maps.lines().find_map(|line| {
        let path = line.get(line.find('/')?..)?;
        path.ends_with("/libtorch_cpu.so").then(|| PathBuf::from(path))
    });
    let library = library.unwrap_or(program);
    let settings = SETTINGS.map(|name| format!("{name}={:?}", env::var_os(name)));
    Some(format!(
        "{processor}\n{} threads\n{} {:?}\n{}\nln-tuning {}\n",
        tch::get_num_threads(),
        library.display(),
        regular::identity(&library)?,
        settings.join(" "),
        env!("CARGO_PKG_VERSION"),
    ))
}

/// The choice under this name, one of `choices`, that the folder keeps for this machine; without one it is measured, and
/// kept if that can be. Of several processes that measure at once, the first decides for all. A file that holds anything
/// else is replaced.
pub(super) fn kept_or<T: Copy, E>(
    (folder, machine): (&Path, &str),
    name: &str,
    choices: &[(&str, T)],
    measure: impl FnOnce() -> Result<usize, E>,
) -> Result<T, E> {
    let mut hasher = DefaultHasher::new();
    machine.hash(&mut hasher);
    let path = folder.join(format!("{name}-{:016x}", hasher.finish()));
    let text = |choice: usize| format!("{name}: {}\n{machine}", choices[choice].0);
    let read = || {
        let found = regular::read_text(&path).ok()?;
        (0..choices.len()).find(|choice| found == text(*choice))
    };
    if let Some(choice) = read() {
        return Ok(choices[choice].1);
    }
    let choice = measure()?;
    let write = || -> std::io::Result<usize> {
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text(choice).as_bytes())?;
        match file.persist_noclobber(&path) {
            Ok(_) => Ok(choice),
            Err(refused) => match read() {
                Some(first) => Ok(first),
                None => refused.file.persist(&path).map(|_| choice).map_err(|e| e.error),
            },
        }
    };
    // A folder that cannot be written to costs a measurement in each process.
    Ok(choices[write().unwrap_or(choice)].1)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Barrier;

    use super::*;

    const CHOICES: [(&str, bool); 2] = [("no", false), ("yes", true)];

    fn ask(folder: &Path, machine: &str, measured: bool) -> (bool, bool) {
        let mut asked = false;
        let choice = kept_or((folder, machine), "choice", &CHOICES, || {
            asked = true;
            Ok::<_, Infallible>(measured.into())
        });
        (choice.unwrap(), asked)
    }

    fn only_file(folder: &Path) -> PathBuf {
        let mut files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let file = files.next().unwrap();
        assert!(files.next().is_none(), "more than one file");
        file
    }

    #[test]
    fn a_choice_is_measured_once_per_machine_and_again_where_the_file_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/ln-tuning");
        assert_eq!(ask(&folder, "one", true), (true, true));
        assert_eq!(ask(&folder, "one", false), (true, false));
        let file = only_file(&folder);
        let whole = fs::read(&file).unwrap();
        // Another machine under the same home, and a file that was copied from one.
        assert_eq!(ask(&folder, "two", false), (false, true));
        let other = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let other = other.into_iter().find(|path| *path != file).unwrap();
        let foreign = fs::read(&other).unwrap();
        let longer = [&whole[..], b" "].concat();
        for damaged in [&b""[..], &whole[..whole.len() - 1], &longer, b"\xff\xfe", &foreign] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(ask(&folder, "one", false), (false, true));
            assert_eq!(ask(&folder, "one", true), (false, false));
        }
        assert_eq!(ask(&folder, "two", true), (false, false));
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_costs_a_measurement_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for choice in [true, false] {
            assert_eq!(ask(&file, "one", choice), (choice, true));
            assert_eq!(ask(&file.join("below"), "one", choice), (choice, true));
        }
        assert_eq!(fs::read(&file).unwrap(), b"");
        // A folder in the place of the file.
        let folder = dir.path().join("folder");
        ask(&folder, "one", true);
        let kept = only_file(&folder);
        fs::remove_file(&kept).unwrap();
        fs::create_dir(&kept).unwrap();
        assert_eq!(ask(&folder, "one", false), (false, true));
        assert_eq!(only_file(&folder), kept);
    }

    #[test]
    fn of_several_that_measure_at_once_the_first_decides_for_all() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let machine = format!("machine {round}");
            let barrier = Barrier::new(8);
            let choices: Vec<bool> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..8)
                    .map(|number| {
                        let (barrier, machine, folder) = (&barrier, &machine, dir.path());
                        scope.spawn(move || {
                            let measure = || {
                                barrier.wait();
                                Ok::<_, Infallible>(number % 2)
                            };
                            let measured = kept_or((folder, machine), "choice", &CHOICES, measure);
                            measured.unwrap()
                        })
                    })
                    .collect();
                all.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(choices, [choices[0]; 8], "{round}");
            assert_eq!(ask(dir.path(), &machine, !choices[0]), (choices[0], false));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_machine_is_the_same_each_time_and_another_with_other_threads() {
        tch::set_num_threads(1);
        let one = machine().unwrap();
        assert!(one.contains("1 threads") && one.contains("model name"), "{one}");
        assert_eq!(machine().unwrap(), one);
    }
}
