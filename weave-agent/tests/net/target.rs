use std::path::PathBuf;
use std::process::{Child, Command};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use weave_agent::io::net::docker::Docker;
use weave_agent::io::net::{Netns, NetnsId, Target, TargetError};

use crate::host::{Namespace, eventually, on_a_host};

struct Process(Child);

impl Process {
    async fn inside(namespace: &Namespace) -> Self {
        let path = format!("--net=/run/netns/{}", namespace.name);
        let process = Self(Command::new("nsenter").args([&path, "sleep", "60"]).spawn().unwrap());
        let file = PathBuf::from(format!("/proc/{}/ns/net", process.0.id()));
        eventually("the process is inside", async || NetnsId::of(&file).is_ok_and(|id| id == namespace.netns().id())).await;
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn resolve(text: &str, docker: &Docker) -> Result<Netns, TargetError> {
    Target::parse(text)?.resolve(docker).await
}

/// Answers as Docker does for one container and its name, any number of times.
fn fake_docker(folder: &std::path::Path, pid: u32) -> Docker {
    let path = folder.join("docker.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let body = format!(r#"{{"Id":"0123456789ab","State":{{"Running":true,"Pid":{pid}}}}}"#);
            let answer = if request.starts_with("GET /containers/web/json ") || request.starts_with("GET /containers/0123456789/json ") {
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            } else if request.starts_with("GET /containers/stopped/json ") {
                "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"State\":{\"Pid\":0}}".to_owned()
            } else {
                "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}".to_owned()
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    Docker::from_host(Some(&format!("unix://{}", path.display())))
}

#[test]
fn a_container_is_found_by_path_name_process_and_through_docker() {
    on_a_host(async || {
        let (container, folder) = (Namespace::new(), tempfile::tempdir().unwrap());
        let process = Process::inside(&container).await;
        let pid = process.0.id();
        let docker = fake_docker(folder.path(), pid);
        let id = container.netns().id();
        let path = format!("/proc/{pid}/ns/net");
        for text in [&container.name, &path, &pid.to_string(), "web", "0123456789"] {
            assert_eq!(resolve(text, &docker).await.unwrap().id(), id, "{text}");
        }
    });
}

#[test]
fn what_is_not_found_is_told_with_all_that_was_tried() {
    on_a_host(async || {
        let folder = tempfile::tempdir().unwrap();
        let docker = fake_docker(folder.path(), 1);
        let unknown = resolve("nobody", &docker).await.unwrap_err().to_string();
        for part in ["nobody", "/run/netns/nobody", "Docker has no container", "process id"] {
            assert!(unknown.contains(part), "{unknown}");
        }
        assert!(resolve("stopped", &docker).await.unwrap_err().to_string().contains("not running"));
        assert!(resolve("/etc/passwd", &docker).await.unwrap_err().to_string().contains("not the file of a namespace"));
        let silent = Docker::from_host(Some("unix:///nowhere/docker.sock"));
        assert!(resolve("web", &silent).await.unwrap_err().to_string().contains("/nowhere/docker.sock"));
    });
}

#[test]
fn the_hosts_own_namespace_is_refused() {
    on_a_host(async || {
        let docker = Docker::from_host(Some("unix:///nowhere/docker.sock"));
        let own = resolve("/proc/thread-self/ns/net", &docker).await;
        assert!(matches!(own, Err(TargetError::HostNamespace { .. })));
    });
}
