//! A saved directory is the old or the new one, whole, whatever interrupts the save and whoever saves beside it.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ln_tuning::{ErrorKind, LnTuningConfig, LnTuningModel, SaveOptions, SavedAdapter};
use tch::Kind;

use crate::nets::Net;

/// Two adapters: other modules, other values, another card; `second` stands in a folder.
fn two() -> [(Net, LnTuningModel); 2] {
    ["norm1", "norm2"].map(|name| {
        let net = Net::new(Kind::Float);
        let config = || LnTuningConfig::default().target_modules([name]).base_model(name);
        let mut tuned = LnTuningModel::new(&net.vs, config()).unwrap();
        net.train(&tuned, if name == "norm1" { 1 } else { 2 });
        tuned.add_adapter("second", config().modules_to_save(["head"])).unwrap();
        (net, tuned)
    })
}

/// The files below a directory, without what a killed save leaves.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().ends_with(".tmp") {
            continue;
        } else if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    found
}

fn leftovers(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().ends_with(".tmp")).count()
}

/// The child of the next tests: saves the two in turn until it is killed.
#[test]
fn a_save_that_is_killed_child() {
    let Some(dir) = std::env::var_os("LN_TUNING_KILLED") else { return };
    let two = two();
    println!("ready");
    loop {
        two.iter().for_each(|(_, tuned)| tuned.save_pretrained(Path::new(&dir)).unwrap());
    }
}

/// A process that saves in `dir`, from `at`.
fn saving(dir: &Path, at: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "atomic::a_save_that_is_killed_child", "--nocapture"])
        .env("LN_TUNING_KILLED", dir)
        .current_dir(at)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut said, mut byte) = (String::new(), [0]);
    while !said.ends_with("ready\n") {
        assert_eq!(child.stdout.as_mut().unwrap().read(&mut byte).unwrap(), 1, "{said}");
        said.push(byte[0] as char);
    }
    child
}

/// Kills a process that saves in `dir` again and again, and gives the number of those that left something behind.
fn kill(dir: &Path, at: &Path, check: impl Fn()) -> usize {
    let mut interrupted = 0;
    for round in 0..10 {
        let mut child = saving(dir, at);
        std::thread::sleep(Duration::from_micros(20_000 + 3_313 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let left = leftovers(dir) + leftovers(dir.parent().unwrap());
        assert!(left <= 2, "leftovers of former saves stay");
        interrupted += usize::from(left > 0);
        check();
    }
    interrupted
}

#[test]
fn a_save_killed_at_any_instant_leaves_the_old_or_the_new_directory() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("adapter");
    let two = two();
    let whole = two.each_ref().map(|(_, tuned)| {
        tuned.save_pretrained(&dir).unwrap();
        files(&dir)
    });
    assert!(whole[0] != whole[1] && whole[0].len() == 5);
    // All else stays: the same file, not a copy.
    std::fs::create_dir(dir.join("mine")).unwrap();
    std::fs::write(dir.join("mine/notes.txt"), "mine").unwrap();
    std::os::unix::fs::symlink("mine/notes.txt", dir.join("link")).unwrap();
    let inode = std::fs::metadata(dir.join("mine/notes.txt")).unwrap().ino();
    let interrupted = kill(&dir, root.path(), || {
        let mut found = files(&dir);
        assert_eq!(found.remove(&dir.join("mine/notes.txt")).unwrap(), b"mine");
        assert_eq!(found.remove(&dir.join("link")).unwrap(), b"mine");
        assert!(whole.contains(&found), "a mixture");
        assert_eq!(std::fs::metadata(dir.join("link")).unwrap().ino(), inode);
        SavedAdapter::open(&dir).unwrap();
    });
    assert!(interrupted > 1, "only {interrupted} saves were interrupted");
    two[0].1.save_pretrained(&dir).unwrap();
    assert_eq!(leftovers(&dir) + leftovers(root.path()), 0);
}

/// A directory that a process works in cannot be exchanged.
#[test]
fn where_directories_cannot_be_exchanged_a_killed_save_leaves_no_mixture() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("adapter");
    let two = two();
    let adapters = [dir.clone(), dir.join("second")];
    let read = || adapters.each_ref().map(|dir| files(dir));
    let whole = two.each_ref().map(|(_, tuned)| {
        tuned.save_pretrained(&dir).unwrap();
        adapters.each_ref().map(|dir| {
            ["adapter_config.json", "adapter_model.safetensors"]
                .map(|name| std::fs::read(dir.join(name)).unwrap())
        })
    });
    assert!(read()[1].len() == 2);
    kill(&dir, &dir, || {
        for (adapter, dir) in adapters.iter().enumerate() {
            match std::fs::read(dir.join("adapter_config.json")) {
                Ok(config) => {
                    let tensors = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
                    let found = [config, tensors];
                    assert!(whole.iter().any(|whole| whole[adapter] == found), "a mixture");
                }
                Err(_) => {
                    let error = SavedAdapter::open(dir).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::MissingFile, "{error}");
                }
            }
        }
    });
    two[1].1.save_pretrained(&dir).unwrap();
    assert_eq!(SavedAdapter::open(&dir).unwrap().config.base_model_name_or_path.unwrap(), "norm2");
    assert_eq!(leftovers(&dir), 0);
}

#[test]
fn processes_that_save_at_once_lose_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("deep/er");
    let names: Vec<String> = (0..6).map(|i| format!("a{i}")).collect();
    let place = &dir;
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(move || {
                let net = Net::new(Kind::Float);
                let config = LnTuningConfig::default().base_model(name.as_str());
                let tuned = LnTuningModel::with_adapter_name(&net.vs, config, name).unwrap();
                for _ in 0..5 {
                    tuned.save_pretrained(place).unwrap();
                    let saved = SavedAdapter::open(place.join(name)).unwrap();
                    assert_eq!(saved.config.base_model_name_or_path.as_ref(), Some(name));
                }
            });
        }
    });
    for name in &names {
        SavedAdapter::open(dir.join(name)).unwrap();
    }
    assert_eq!(leftovers(&dir) + leftovers(&root.path().join("deep")), 0);
}

#[test]
fn whoever_reads_during_a_save_gets_what_belongs_together() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("adapter");
    two()[0].1.save_pretrained(&dir).unwrap();
    let mut child = saving(&dir, root.path());
    let mut seen = std::collections::BTreeSet::new();
    let start = Instant::now();
    while seen.len() < 2 || start.elapsed() < Duration::from_secs(1) {
        assert!(start.elapsed() < Duration::from_secs(30), "only {seen:?} was seen");
        let saved = SavedAdapter::open(&dir).unwrap();
        let base = saved.config.base_model_name_or_path.unwrap();
        assert!(saved.tensors.iter().all(|(key, _)| key.contains(&base)), "a mixture");
        seen.insert(base);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_does_not_change_is_not_written() {
    let root = tempfile::tempdir().unwrap();
    let (net, tuned) = &two()[0];
    let options = SaveOptions::default().selected_adapters(["default"]);
    let names = ["README.md", "adapter_config.json", "adapter_model.safetensors"];
    let save = || {
        tuned.save_pretrained_with(root.path().join("a"), &options).unwrap();
        let files = names.map(|name| root.path().join("a").join(name));
        files.map(|path| std::fs::metadata(path).unwrap().ino())
    };
    let first = save();
    net.train(tuned, 1);
    let second = save();
    assert_eq!((first[0], first[1], first[2] == second[2]), (second[0], second[1], false));
}

/// The directory keeps its name, its mode and its owner; a link to it stays a link.
#[test]
fn a_directory_that_is_exchanged_looks_as_before() {
    use std::os::unix::fs::{symlink, PermissionsExt};
    let root = tempfile::tempdir().unwrap();
    let (dir, link) = (root.path().join("real/adapter"), root.path().join("link"));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o2750)).unwrap();
    symlink(&dir, &link).unwrap();
    let look = || {
        let found = std::fs::metadata(&dir).unwrap();
        (found.mode(), found.uid(), found.gid())
    };
    let before = look();
    let mut inodes = std::collections::BTreeSet::new();
    for (_, tuned) in &two() {
        tuned.save_pretrained(&link).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(look(), before);
        inodes.insert(std::fs::metadata(&dir).unwrap().ino());
    }
    assert_eq!(inodes.len(), 2, "it was exchanged");
    assert_eq!(leftovers(&root.path().join("real")) + leftovers(root.path()), 0);
}
