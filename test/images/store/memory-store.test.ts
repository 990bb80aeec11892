import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { chunkStoreConformance } from './conformance.ts'

chunkStoreConformance('memory', async () => new MemoryStore())
